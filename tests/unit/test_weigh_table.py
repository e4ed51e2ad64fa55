"""Weights of one part: rows in its order, mean one in every group."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_ray.config import WeightingConfig
from drift_ray.errors import DataError
from drift_ray.schema import WEIGHT_SCHEMA, trajectory_table
from drift_ray.types import Trajectory
from drift_ray.weighting.stage import weigh_table
from tests.unit.scripted import trajectory

GROUPS = st.lists(
    st.lists(
        st.tuples(st.lists(st.sampled_from("1234"), max_size=4), st.booleans()),
        min_size=1,
        max_size=5,
    ),
    min_size=1,
    max_size=4,
)
Group = list[tuple[list[str], bool]]


def records(groups: list[Group]) -> list[Trajectory]:
    return [
        trajectory(f"p{g}", i, answers=answers, success=success and bool(answers))
        for g, group in enumerate(groups)
        for i, (answers, success) in enumerate(group)
    ]


@settings(max_examples=40)
@given(groups=GROUPS, order=st.randoms(use_true_random=False))
def test_rows_stand_in_the_order_of_the_part(groups: list[Group], order: random.Random) -> None:
    rows = records(groups)
    order.shuffle(rows)
    weights = weigh_table(trajectory_table(rows), WeightingConfig())
    assert weights.schema.equals(WEIGHT_SCHEMA)
    assert weights["prompt_id"].to_pylist() == [row.prompt_id for row in rows]
    assert weights["trajectory_index"].to_pylist() == [row.trajectory_index for row in rows]
    shaped = weights["shaped_return"].to_numpy()
    parts = [weights[name].to_numpy() for name in ("discounted_return", "format_penalty")]
    assert shaped == pytest.approx(sum(parts) - weights["repetition_penalty"].to_numpy())
    returns = [0.9 ** (len(r.turns) - 1) if r.first_success_turn else 0.0 for r in rows]
    assert weights["discounted_return"].to_pylist() == pytest.approx(returns)


@settings(max_examples=40)
@given(GROUPS, st.floats(0.01, 10))
def test_every_group_has_mean_one(groups: list[Group], beta: float) -> None:
    weights = weigh_table(trajectory_table(records(groups)), WeightingConfig(beta=beta))
    means = weights.group_by("prompt_id").aggregate([("importance_weight", "mean")])
    assert means["importance_weight_mean"].to_pylist() == pytest.approx([1.0] * len(groups))


def test_better_trajectories_weigh_more() -> None:
    rows = [
        trajectory("p", 0, answers=["1"], success=True),
        trajectory("p", 1, answers=["2", "1"], success=True),
        trajectory("p", 2, answers=["2", "3"]),
        trajectory("p", 3, answers=["2", "2"]),
        trajectory("p", 4, answers=["2", "2"], format_penalty=-0.1),
    ]
    weights = weigh_table(trajectory_table(rows), WeightingConfig())["importance_weight"]
    assert weights.to_pylist() == sorted(set(weights.to_pylist()), reverse=True)
    ratio = weights[0].as_py() / weights[1].as_py()
    assert ratio == pytest.approx(np.exp((1.0 - 0.9) / 0.1))


def test_groups_without_success_are_kept_or_dropped_as_told() -> None:
    rows = [
        trajectory("none", 0, answers=["2"]),
        trajectory("some", 0, answers=["2"]),
        trajectory("none", 1, answers=["2", "2"]),
        trajectory("some", 1, answers=["2", "1"], success=True),
    ]
    table = trajectory_table(rows)
    kept = weigh_table(table, WeightingConfig(all_failed="keep"))
    dropped = weigh_table(table, WeightingConfig(all_failed="drop"))
    names = ["discounted_return", "format_penalty", "repetition_penalty", "shaped_return"]
    assert kept.select(names).equals(dropped.select(names))
    before, after = (t["importance_weight"].to_numpy() for t in (kept, dropped))
    assert (before > 0).all()
    assert after.tolist() == [0.0, before[1], 0.0, before[3]]


def test_trajectories_without_turns_and_parts_without_rows() -> None:
    rows = [trajectory("p", 0, answers=[]), trajectory("p", 1, answers=["1"], success=True)]
    weights = weigh_table(trajectory_table(rows), WeightingConfig())
    assert weights["shaped_return"].to_pylist() == [0.0, 1.0]
    empty = weigh_table(trajectory_table([]), WeightingConfig())
    assert empty.num_rows == 0
    assert empty.schema.equals(WEIGHT_SCHEMA)


def test_a_slice_of_a_part_weighs_as_a_part_of_its_own() -> None:
    rows = [trajectory(f"p{k // 2}", k % 2, answers=["2"] * (k + 1)) for k in range(6)]
    table = trajectory_table(rows)
    alone = weigh_table(trajectory_table(rows[2:]), WeightingConfig())
    assert weigh_table(table.slice(2), WeightingConfig()).equals(alone)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_a_return_that_is_no_number_is_named(bad: float) -> None:
    rows = [trajectory("p0"), trajectory("p1", format_penalty=bad)]
    with pytest.raises(DataError, match=r"row 1 \(group p1\)"):
        weigh_table(trajectory_table(rows), WeightingConfig())
