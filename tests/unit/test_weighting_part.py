"""One rollout part: what is read of it, what is refused, and the weight table beside it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_ray.config import WeightingConfig
from drift_ray.errors import DataError
from drift_ray.schema import SOURCE_KEY, TRAJECTORY_SCHEMA, WEIGHT_SCHEMA, trajectory_table
from drift_ray.store import RunStore
from drift_ray.types import StopReason
from drift_ray.weighting.part import (
    content_of,
    is_committed,
    read_columns,
    return_table,
    weight_name,
    weight_table,
)
from drift_ray.weighting.split import find_split_groups, weigh_rest
from drift_ray.weighting.tasks import pack, unpack
from drift_ray.weighting.weigh import weigh_groups
from tests.unit.scripted import trajectory
from tests.unit.weighting_cases import Group, group_lists, records, returns_of

PART = "rollouts/part-000000-0123abcd.parquet"


def weigh(rows: list[Any], **settings: Any) -> pa.Table:
    config = WeightingConfig(**settings)
    returns = returns_of(rows, config)
    weighed = weigh_groups(returns, config, run_beta=None)
    return weight_table(returns, weighed.importance_weight, {SOURCE_KEY: b"x"})


@settings(max_examples=25)
@given(groups=group_lists, order=st.randoms(use_true_random=False))
def test_rows_stand_in_the_order_of_the_part(groups: list[Group], order: random.Random) -> None:
    rows = records(groups)
    order.shuffle(rows)
    weights = weigh(rows)
    assert weights.schema.equals(WEIGHT_SCHEMA)
    assert weights["prompt_id"].to_pylist() == [row.prompt_id for row in rows]
    assert weights["trajectory_index"].to_pylist() == [row.trajectory_index for row in rows]
    shaped = weights["shaped_return"].to_numpy()
    parts = [weights[name].to_numpy() for name in ("discounted_return", "format_penalty")]
    assert shaped == pytest.approx(sum(parts) - weights["repetition_penalty"].to_numpy())
    returns = [0.9 ** (len(r.turns) - 1) if r.first_success_turn else 0.0 for r in rows]
    assert weights["discounted_return"].to_pylist() == pytest.approx(returns)


@settings(max_examples=25)
@given(group_lists, st.floats(1e-3, 1e3))
def test_every_group_has_mean_one(groups: list[Group], beta: float) -> None:
    weights = weigh(records(groups), beta=beta)
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
    weights = weigh(rows)["importance_weight"].to_pylist()
    assert weights == sorted(set(weights), reverse=True)
    assert weights[0] / weights[1] == pytest.approx(np.exp((1.0 - 0.9) / 0.1))


def test_single_turn_goes_by_the_first_turn_alone() -> None:
    rows = [
        trajectory("p", 0, answers=["1"], success=True),
        trajectory("p", 1, answers=["2", "1"], success=True),
        trajectory("p", 2, answers=["2", "2"]),
        trajectory("p", 3, answers=[]),
    ]
    weights = weigh(rows, method="single_turn")
    assert weights["shaped_return"].to_pylist() == [1.0, 0.0, 0.0, 0.0]
    assert len(set(weights["importance_weight"].to_pylist()[1:])) == 1
    later = weigh([rows[1], rows[2]], method="single_turn", all_failed="drop")
    assert later["importance_weight"].to_pylist() == [0.0, 0.0]  # nobody succeeded at once
    assert WeightingConfig(method="single_turn").name == "single_turn"


def test_trajectories_without_turns_and_parts_without_rows() -> None:
    rows = [trajectory("p", 0, answers=[]), trajectory("p", 1, answers=["1"], success=True)]
    assert weigh(rows)["shaped_return"].to_pylist() == [0.0, 1.0]
    for method in ("drift", "single_turn", "group_advantage"):
        empty = weigh([], method=method)
        assert empty.num_rows == 0
        assert empty.schema.equals(WEIGHT_SCHEMA)


def test_what_the_summary_counts() -> None:
    fine = trajectory("p", 0, answers=["1", "2"])
    table = trajectory_table([fine, fine, fine])
    turns = table["turns"].to_pylist()
    turns[1][1]["stop_reason"] = StopReason.LENGTH.value
    turns[2][0]["format_ok"] = False
    index = table.schema.get_field_index("turns")
    changed = table.set_column(index, "turns", pa.array(turns, table["turns"].type))
    found = return_table(changed, WeightingConfig())
    assert found["truncated"].to_pylist() == [False, True, False]
    assert found["format_failed"].to_pylist() == [False, False, True]
    assert found["first_success_turn"].to_pylist() == [0, 0, 0]


def bad_turn(row: int, turn: int, **values: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: rows[row]["turns"][turn].update(values)


def bad_row(row: int, **values: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: rows[row].update(values)


@pytest.mark.parametrize(
    ("spoil", "row", "column"),
    [
        (bad_turn(2, 1, reward=float("nan")), 2, "turns.reward"),
        (bad_turn(1, 0, reward=float("inf")), 1, "turns.reward"),
        (bad_turn(3, 1, reward=None), 3, "turns.reward"),
        (bad_turn(3, 1, answer_norms=None), 3, "turns.answer_norms"),
        (bad_turn(3, 1, answer_norms=["1", None]), 3, "turns.answer_norms"),
        (bad_turn(0, 1, format_ok=None), 0, "turns.format_ok"),
        (bad_turn(0, 1, stop_reason=None), 0, "turns.stop_reason"),
        (bad_row(1, turns=None), 1, "turns"),
        (bad_row(2, prompt_id=None), 2, "prompt_id"),
        (bad_row(2, prompt_id=""), 2, "prompt_id"),
        (bad_row(3, trajectory_index=None), 3, "trajectory_index"),
        (bad_row(1, format_penalty=float("-inf")), 1, "format_penalty"),
        (bad_row(1, format_penalty=None), 1, "format_penalty"),
    ],
)
def test_impossible_values_are_named(
    tmp_path: Path, spoil: Callable[[list[dict[str, Any]]], None], row: int, column: str
) -> None:
    table = trajectory_table([trajectory("p", i, answers=["1", "2"]) for i in range(4)])
    rows = table.to_pylist()
    spoil(rows)
    store = RunStore(str(tmp_path))
    bad = pa.Table.from_pylist(rows, schema=TRAJECTORY_SCHEMA)
    store.write_table(PART, bad.replace_schema_metadata(table.schema.metadata))
    with pytest.raises(DataError, match=rf"{PART}, row {row}: column '{column}'"):
        read_columns(store, PART)


def test_foreign_truncated_and_newer_parts_are_named(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    table = trajectory_table([trajectory("p")])
    metadata = dict(table.schema.metadata)
    newer = {**metadata, b"drift_ray.schema_version": b"99"}
    no_content = {k: v for k, v in metadata.items() if b"content" not in k}
    for wrong in ({}, newer, no_content):
        store.write_table(PART, table.replace_schema_metadata(wrong))
        with pytest.raises(DataError, match=PART):
            read_columns(store, PART)
    store.write_table(PART, table.drop_columns(["turns"]))
    with pytest.raises(DataError, match=rf"{PART}: column 'turns' is missing"):
        read_columns(store, PART)
    store.write_bytes(PART, b"PAR1")
    with pytest.raises(DataError, match=PART):
        read_columns(store, PART)


def test_only_what_is_needed_is_read(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    table = trajectory_table(records([[(["1", "2"], True), ([], False)]]))
    store.write_table(PART, table)
    columns = read_columns(store, PART)
    assert "token_ids" not in columns.column_names
    assert "text" not in {field.name for field in columns.schema.field("turns").type.value_type}
    whole = pq.read_table(store.path(PART))
    config = WeightingConfig()
    assert return_table(columns, config).equals(return_table(whole, config))
    assert content_of(columns) == table.schema.metadata[b"drift_ray.content"]


def test_committed_weights_are_known_by_their_metadata(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    config = WeightingConfig(name="mine")
    name = weight_name(PART, config)
    assert name == "weights/mine/part-000000-0123abcd.parquet"
    assert not is_committed(store, name, WEIGHT_SCHEMA, {SOURCE_KEY: b"x"})
    store.write_table(name, weigh([trajectory("p")]))
    assert is_committed(store, name, WEIGHT_SCHEMA, {SOURCE_KEY: b"x"})
    assert not is_committed(store, name, WEIGHT_SCHEMA, {SOURCE_KEY: b"y"})
    store.write_bytes(name, b"PAR1")
    assert not is_committed(store, name, WEIGHT_SCHEMA, {SOURCE_KEY: b"x"})


@settings(max_examples=25)
@given(group_lists, st.data())
def test_row_groups_of_a_part_change_nothing(groups: list[Group], data: st.DataObject) -> None:
    rows = records(groups)
    cut = data.draw(st.integers(0, len(rows)))
    table = trajectory_table(rows)
    chunked = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    config = WeightingConfig()
    (scalar,) = pa.array([pack(return_table(chunked, config))], pa.large_binary())
    returns = unpack(scalar)
    assert returns.equals(return_table(table, config))
    assert sorted(find_split_groups([returns, returns]).to_pylist()) == sorted(
        {row.prompt_id for row in rows}
    )
    weight, _ = weigh_rest(returns, None, config, run_beta=None)
    expected, _ = weigh_rest(return_table(table, config), None, config, run_beta=None)
    assert weight.tolist() == expected.tolist()
