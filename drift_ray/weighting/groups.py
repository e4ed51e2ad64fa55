"""Trajectories by prompt: sums, means and maxima over groups of any size, rows in any order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from drift_ray.errors import DataError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Groups:
    """Which group each of N rows belongs to; no group is without a row.

    Raises:
        DataError: Group ids, or rows, are missing.
    """

    codes: npt.NDArray[np.int64]
    """Shape ``[N]``: the group of each row, from 0."""
    sizes: npt.NDArray[np.int64]
    """Shape ``[num_groups]``: rows of each group, >= 1."""

    def __post_init__(self) -> None:
        if not self.sizes.all():
            raise DataError(
                f"Group {int(np.argmin(self.sizes > 0))} of {len(self.sizes)} is empty: it has no "
                "trajectory to take a mean over.",
                "Number the groups of the rows that are there, without gaps.",
            )

    @classmethod
    def of(cls, ids: npt.ArrayLike | pa.Array) -> Groups:
        """Number groups 0, 1, … in order of first appearance, or as in a dictionary.

        Args:
            ids: Shape ``[N]``, strings or integers, as a NumPy or an Arrow array.
        """
        array = ids if isinstance(ids, pa.Array) else pa.array(np.asarray(ids))
        if array.null_count:
            row = int(np.argmin(array.is_valid().to_numpy(zero_copy_only=False)))
            raise DataError(f"Row {row} of {len(array)} has no group id.")
        codes = array.dictionary_encode().indices.to_numpy().astype(np.int64)
        sizes = np.bincount(codes)
        # The dictionary of a part's part names groups that are not in it.
        number = np.cumsum(sizes > 0) - 1
        return cls(codes=number[codes], sizes=sizes[sizes > 0])

    def __len__(self) -> int:
        """How many groups there are."""
        return len(self.sizes)

    def spread(self, values: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
        """One value a group, shape ``[num_groups]``, as one value a row, shape ``[N]``."""
        return values[self.codes]

    def sum(self, values: npt.NDArray[np.generic]) -> Floats:
        """Shape ``[num_groups]``."""
        # bincount gives integers when there is nothing to count.
        return np.bincount(self.codes, weights=values, minlength=len(self)).astype(np.float64)

    def mean(self, values: npt.NDArray[np.generic]) -> Floats:
        """Shape ``[num_groups]``."""
        return self.sum(values) / self.sizes

    def max(self, values: Floats) -> Floats:
        """Shape ``[num_groups]``."""
        greatest = np.full(len(self), -np.inf)
        np.maximum.at(greatest, self.codes, values)
        return greatest

    def any(self, flags: Bools) -> Bools:
        """Whether a row of the group has the flag; shape ``[num_groups]``."""
        return self.sum(flags) > 0

    def only(self, rows: Bools) -> Groups:
        """The groups of some rows, numbered anew; groups without any of these rows are left out."""
        kept = np.bincount(self.codes[rows], minlength=len(self))
        number = np.cumsum(kept > 0) - 1
        return Groups(codes=number[self.codes[rows]], sizes=kept[kept > 0])
