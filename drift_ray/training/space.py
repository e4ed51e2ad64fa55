"""A full disk, in whichever words the libraries below say it."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from drift_ray.errors import StorageError

# safetensors and RunStore set no errno.
_IN_WORDS = re.compile("no space left|quota exceeded", re.IGNORECASE)


def lacks_space(error: Exception) -> bool:
    """Whether an error says that a disk or a quota is full."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or _IN_WORDS.search(str(error)) is not None


@contextmanager
def writing_to(place: Path | str) -> Iterator[None]:
    """Name the place that is full.

    Raises:
        StorageError: Whatever is written inside the block finds no space.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, StorageError) or not lacks_space(error):
            raise
        raise StorageError(
            f"No space left to write {place}.",
            "Free some space and run the same command again; the last checkpoint stays.",
        ) from error
