"""Strategies and makers for groups of trajectories, as the weighting room sees them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from drift_ray.config import WeightingConfig
from drift_ray.schema import SOURCE_KEY, trajectory_table
from drift_ray.store import RunStore
from drift_ray.types import Trajectory
from drift_ray.weighting.groups import Groups
from drift_ray.weighting.part import (
    content_of,
    read_columns,
    return_table,
    weight_name,
    weight_table,
)
from drift_ray.weighting.weigh import weigh_groups
from drift_ray.weighting.weightings import Rows
from tests.unit.scripted import trajectory

betas = st.floats(1e-3, 1e3)
row_lists = st.lists(
    st.tuples(st.floats(-100, 100), st.sampled_from(["a", "b", "ü", ""])), min_size=1, max_size=40
)
Group = list[tuple[list[str], bool]]
group_lists = st.lists(
    st.lists(
        st.tuples(st.lists(st.sampled_from("1234"), max_size=4), st.booleans()),
        min_size=1,
        max_size=5,
    ),
    min_size=1,
    max_size=4,
)


def split_rows(rows: list[tuple[float, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns and group ids."""
    returns, groups = zip(*rows, strict=True)
    return np.array(returns), np.array(groups)


def make_rows(
    returns: Sequence[float], ids: Sequence[object], first_success_turn: Sequence[int] | None = None
) -> Rows:
    first = [0] * len(returns) if first_success_turn is None else first_success_turn
    return Rows(
        groups=Groups.of(np.asarray(ids)),
        shaped_return=np.asarray(returns, dtype=np.float64),
        first_success_turn=np.asarray(first, dtype=np.int32),
    )


def records(groups: list[Group]) -> list[Trajectory]:
    """Trajectories of groups given as answers and whether the last of them was correct."""
    return [
        trajectory(f"p{g}", i, answers=answers, success=success and bool(answers))
        for g, group in enumerate(groups)
        for i, (answers, success) in enumerate(group)
    ]


def returns_of(rows: Sequence[Trajectory], config: WeightingConfig | None = None) -> pa.Table:
    return return_table(trajectory_table(rows), config or WeightingConfig())


def first_turn_only(rows: Rows, beta: np.ndarray) -> np.ndarray:
    """A weighting of a user's: successes at once."""
    return (rows.first_success_turn == 1) * rows.groups.spread(np.exp(beta))


def short_of_groups_that_failed(rows: Rows, beta: np.ndarray) -> np.ndarray:
    """A weighting that goes wrong on some parts only."""
    return np.where(rows.groups.any(rows.solved).all(), 1.0, np.nan) * rows.shaped_return


def commit_weights(store: RunStore, part: str, config: WeightingConfig) -> np.ndarray:
    """Weigh a part of whole groups as the stage does, without Ray."""
    columns = read_columns(store, part)
    returns = return_table(columns, config)
    weight = weigh_groups(returns, config, run_beta=None).importance_weight
    metadata = {SOURCE_KEY: content_of(columns)}
    store.write_table(weight_name(part, config), weight_table(returns, weight, metadata))
    return weight
