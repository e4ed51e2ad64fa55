"""Sums, means and maxima over groups, against loops."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given

from drift_ray.errors import DataError
from drift_ray.weighting.groups import Groups
from tests.unit.weighting_cases import row_lists, split_rows


def test_groups_are_numbered_by_first_appearance() -> None:
    groups = Groups.of(np.array(["b", "a", "b", "c"], dtype=object))
    assert groups.codes.tolist() == [0, 1, 0, 2]
    assert groups.sizes.tolist() == [2, 1, 1]
    assert Groups.of([5, 3, 5]).codes.tolist() == [0, 1, 0]
    assert len(Groups.of([])) == 0


@given(row_lists)
def test_reductions(rows: list[tuple[float, str]]) -> None:
    values, ids = split_rows(rows)
    groups = Groups.of(ids)
    mine = [values[ids == id_] for id_ in dict.fromkeys(ids)]
    assert groups.sizes.tolist() == [len(each) for each in mine]
    assert groups.sum(values) == pytest.approx([each.sum() for each in mine], abs=1e-9)
    assert groups.mean(values) == pytest.approx([each.mean() for each in mine], abs=1e-9)
    assert groups.max(values).tolist() == [each.max() for each in mine]
    assert groups.any(values > 0).tolist() == [bool((each > 0).any()) for each in mine]
    assert groups.spread(groups.sizes).tolist() == [int((ids == id_).sum()) for id_ in ids]


def test_some_rows_make_groups_of_their_own() -> None:
    groups = Groups.of(["a", "b", "c", "b", "c"]).only(np.array([False, True, False, True, True]))
    assert groups.codes.tolist() == [0, 0, 1]
    assert groups.sizes.tolist() == [2, 1]


def test_a_dictionary_may_name_groups_that_are_not_there() -> None:
    ids = (
        pa.array(["a", "b", "c", "b"])
        .dictionary_encode()
        .filter(pa.array([False, True, True, True]))
    )
    assert Groups.of(ids).codes.tolist() == [0, 1, 0]


def test_a_row_without_group_and_a_group_without_row_are_refused() -> None:
    with pytest.raises(DataError, match="Row 1 of 3 has no group id"):
        Groups.of(pa.array(["a", None, "b"]))
    with pytest.raises(DataError, match="Group 1 of 3 is empty"):
        Groups(codes=np.array([0, 2]), sizes=np.array([1, 0, 1]))
