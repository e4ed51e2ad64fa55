"""Trajectories are cut after the last turn that counts; nothing else about them changes."""

from __future__ import annotations

import pyarrow as pa
import pytest

from drift_ray.errors import DataError
from drift_ray.schema import trajectory_table
from drift_ray.training.cut import cut_turns
from tests.unit.scripted import trajectory

TABLE = trajectory_table(
    [trajectory("p", index, answers=["1", "2", "3"][: index + 1]) for index in range(3)]
)


def counting(*num_turns: int | None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(num_turns, pa.int32())])


@pytest.mark.parametrize(
    ("num_turns", "tokens"),
    [((1, 2, 3), (3, 4, 5)), ((None, None, None), (3, 4, 5)), ((1, 1, 2), (3, 3, 4))],
)
def test_tokens_end_with_the_last_turn_that_counts(
    num_turns: tuple[int | None, ...], tokens: tuple[int, ...]
) -> None:
    cut = cut_turns(TABLE, counting(*num_turns), "w")
    assert cut.schema.equals(TABLE.schema)
    for row, whole, length in zip(cut.to_pylist(), TABLE.to_pylist(), tokens, strict=True):
        assert row["token_ids"] == whole["token_ids"][:length]
        assert row["logprobs"] == whole["logprobs"][:length]
        assert row["turns"] == whole["turns"][: length - 2]
        assert row["messages"] == whole["messages"]


def test_more_turns_than_there_are_is_an_error() -> None:
    with pytest.raises(DataError, match=r"w, row 1: column 'num_turns' is 3, but .* 2 turns"):
        cut_turns(TABLE, counting(1, 3, 3), "w")
