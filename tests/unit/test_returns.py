"""Returns of ragged trajectories, against the definitions written as loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.schema import TRAJECTORY_SCHEMA
from drift_ray.weighting.returns import (
    discounted_return,
    repetition_penalty,
    shaped_return,
    trajectory_returns,
)

reward_lists = st.lists(st.lists(st.floats(-2, 2), max_size=6), max_size=8)
norm_lists = st.lists(st.lists(st.sampled_from(["", "1", "2", "½"]), max_size=6), max_size=8)


def offsets_of(rows: list[list[Any]]) -> np.ndarray:
    return np.cumsum([0, *map(len, rows)])


def discounted_by_hand(rewards: list[float], gamma: float) -> float:
    return sum(gamma**k * r for k, r in enumerate(rewards))


def repetition_by_hand(norms: list[str], coefficient: float) -> float:
    return coefficient * (1 - len(set(norms) - {""}) / len(norms)) if norms else 0.0


@given(reward_lists, st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_discounted_return(rows: list[list[float]], gamma: float) -> None:
    flat = np.array([r for row in rows for r in row], dtype=np.float64)
    found = discounted_return(flat, offsets_of(rows), gamma=gamma)
    expected = [discounted_by_hand(row, gamma) for row in rows]
    assert found == pytest.approx(np.array(expected, dtype=float), abs=1e-12)


@given(norm_lists, st.floats(0, 2))
def test_repetition_penalty(rows: list[list[str]], coefficient: float) -> None:
    flat = pa.array([norm for row in rows for norm in row], pa.string())
    found = repetition_penalty(flat, offsets_of(rows), coefficient=coefficient)
    expected = [repetition_by_hand(row, coefficient) for row in rows]
    assert found == pytest.approx(np.array(expected, dtype=float), abs=1e-12)
    assert np.all((found >= 0) & (found <= coefficient))


@pytest.mark.parametrize(
    ("norms", "penalty"),
    [([], 0.0), (["3"], 0.0), (["3", "3"], 0.25), ([""], 0.5), (["", "3", "3", "4"], 0.25)],
)
def test_repetition_examples(norms: list[str], penalty: float) -> None:
    found = repetition_penalty(
        pa.array(norms, pa.string()), np.array([0, len(norms)]), coefficient=0.5
    )
    assert found.tolist() == [penalty]


def test_shaped_return_signs() -> None:
    shaped = shaped_return(np.array([0.9]), np.array([-0.1]), np.array([0.25]))
    assert shaped.tolist() == pytest.approx([0.55])


def trajectories(rows: list[list[tuple[float, list[str]]]], penalties: list[float]) -> pa.Table:
    turns = [[{"reward": r, "answer_norms": norms} for r, norms in row] for row in rows]
    return pa.table(
        {
            "turns": pa.array(turns, TRAJECTORY_SCHEMA.field("turns").type),
            "format_penalty": pa.array(penalties, pa.float64()),
        }
    )


turn = st.tuples(st.sampled_from([0.0, 1.0]), st.lists(st.sampled_from(["", "1", "2"]), max_size=3))


@given(st.lists(st.lists(turn, max_size=4), max_size=7), st.data())
def test_trajectory_returns_of_any_slice_and_chunking(
    rows: list[list[tuple[float, list[str]]]], data: st.DataObject
) -> None:
    penalties = [-0.1 * k for k in range(len(rows))]
    cut = data.draw(st.integers(0, len(rows)))
    whole = trajectories(rows, penalties)
    chunked = pa.concat_tables([whole.slice(cut), whole.slice(0, cut)])
    order = list(range(cut, len(rows))) + list(range(cut))
    for table, wanted in [
        (whole, list(range(len(rows)))),
        (whole.slice(cut), list(range(cut, len(rows)))),
        (whole.slice(0, cut), list(range(cut))),
        (chunked, order),
    ]:
        columns = trajectory_returns(table, gamma=0.9, repetition_coefficient=0.5)
        assert columns["discounted_return"] == pytest.approx(
            np.array(
                [discounted_by_hand([r for r, _ in rows[i]], 0.9) for i in wanted], dtype=float
            )
        )
        assert columns["repetition_penalty"] == pytest.approx(
            np.array(
                [
                    repetition_by_hand([n for _, norms in rows[i] for n in norms], 0.5)
                    for i in wanted
                ],
                dtype=float,
            )
        )
        assert columns["format_penalty"].tolist() == [penalties[i] for i in wanted]
        assert columns["shaped_return"] == pytest.approx(
            columns["discounted_return"] + columns["format_penalty"] - columns["repetition_penalty"]
        )
