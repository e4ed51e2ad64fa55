"""Arrays larger than memory: files on local disk that all processes of a node map.

The files lose their names as soon as every process has opened them, before anything is written: the
disk gets its room back when the last process ends, in whatever way it ends.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drift_ray.training.space import writing_to


def _do_not_wait() -> None:
    pass


def _own_value(value: Any) -> Any:
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeGroup:
    """The processes that train together and keep one copy of the data a node, as one sees them."""

    local_rank: int = 0
    """Of this process on its node; 0 writes, the others only read."""
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    """The same in all of them on this node, and in no others that ever run."""
    barrier: Callable[[], None] = _do_not_wait
    """Returns when all of them have called it."""
    share: Callable[[Any], Any] = _own_value
    """Returns, in all of them, what the one that leads has called it with."""
    leads: bool = True
    """Whether this process is the one that decides."""

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes."""
        return self.local_rank == 0


class SharedArrays:
    """Named arrays of one dimension that grow at their ends.

    All processes of the group must open them together, and read only what was appended before a
    barrier that they have passed.
    """

    def __init__(self, dtypes: Mapping[str, npt.DTypeLike], group: NodeGroup) -> None:
        """Open empty arrays in the folder for temporary files (``TMPDIR``).

        Args:
            dtypes: Of each array, by its name.
            group: This process and those it shares the arrays with; calls its barrier twice.

        Raises:
            StorageError: No space left.
        """
        self._dtypes = {name: np.dtype(dtype) for name, dtype in dtypes.items()}
        self._folder = Path(tempfile.gettempdir()) / f"drift_ray-data-{group.name}"
        with writing_to(self._folder), ExitStack() as stack:
            if group.writes:
                self._folder.mkdir()
                stack.callback(shutil.rmtree, self._folder)
                for name in dtypes:
                    (self._folder / name).touch()
            group.barrier()
            mode = "ab+" if group.writes else "rb"
            self._files = {name: open(self._folder / name, mode) for name in dtypes}  # noqa: SIM115
            group.barrier()

    def close(self) -> None:
        """Append and map no more; what was mapped stays."""
        for file in self._files.values():
            file.close()

    def append(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write at the ends of some arrays; only in the process that writes.

        Raises:
            StorageError: No space left.
        """
        with writing_to(self._folder):
            for name, array in arrays.items():
                if array.dtype != self._dtypes[name]:
                    raise TypeError(f"{name} is {self._dtypes[name]}, not {array.dtype}")
                self._files[name].write(np.ascontiguousarray(array).data)
                self._files[name].flush()

    def mapped(self, name: str) -> npt.NDArray[Any]:
        """An array as it is now, read-only, its values left on disk until they are looked at."""
        size = self._size(name)
        if not size:
            return np.empty(0, self._dtypes[name])  # no system maps an empty file
        return np.memmap(self._files[name], self._dtypes[name], "r", shape=(size,))

    def loaded(self, name: str) -> npt.NDArray[Any]:
        """A copy of an array as it is now, in memory."""
        return np.array(self.mapped(name))

    def _size(self, name: str) -> int:
        file = self._files[name]
        return os.fstat(file.fileno()).st_size // self._dtypes[name].itemsize
