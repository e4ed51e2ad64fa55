"""The data contract: records become rows that anything reads, and foreign files are refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_ray.errors import DataError
from drift_ray.schema import (
    CONTENT_KEY,
    SCHEMA_VERSION,
    TRAJECTORY_SCHEMA,
    WEIGHT_SCHEMA,
    check_table,
    trajectory_table,
)
from drift_ray.store import RunStore
from drift_ray.types import EndReason, Message, StopReason, Trajectory, Turn
from tests.unit.scripted import trajectory

VERSION = b"drift_ray.schema_version"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)  # no lone surrogates


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    tokens = draw(st.lists(st.integers(0, 2**31 - 1), max_size=12))
    logprobs = draw(
        st.lists(
            st.floats(max_value=0, width=32, allow_infinity=False) | st.just(float("nan")),
            min_size=len(tokens),
            max_size=len(tokens),
        )
    )
    answers = st.lists(TEXT, max_size=2).map(tuple)
    turn = st.builds(
        Turn,
        turn_index=st.integers(0, 9),
        text=TEXT,
        canonical_text=TEXT,
        answers=answers,
        answer_norms=answers,
        reward=st.sampled_from([0.0, 1.0]),
        format_ok=st.booleans(),
        stop_reason=st.sampled_from(StopReason),
        prompt_start=st.integers(0, 99),
        token_start=st.integers(0, 99),
        token_end=st.integers(0, 99),
    )
    message = st.builds(Message, role=st.sampled_from(["user", "assistant"]), content=TEXT)
    return Trajectory(
        prompt_id=draw(TEXT),
        trajectory_index=draw(st.integers(0, 2**31 - 1)),
        task=draw(TEXT),
        question=draw(TEXT),
        gold=draw(TEXT),
        messages=tuple(draw(st.lists(message, max_size=3))),
        turns=tuple(draw(st.lists(turn, max_size=3))),
        token_ids=np.asarray(tokens, np.int32),
        logprobs=np.asarray(logprobs, np.float32),
        first_success_turn=draw(st.none() | st.integers(1, 9)),
        format_penalty=draw(st.floats(-9, 0)),
        end_reason=draw(st.sampled_from(EndReason)),
        seed=draw(st.integers(0, 2**31 - 1)),
    )


def expected_row(t: Trajectory, num_in_group: int) -> dict[str, Any]:
    return {
        "prompt_id": t.prompt_id,
        "trajectory_index": t.trajectory_index,
        "task": t.task,
        "question": t.question,
        "gold": t.gold,
        "messages": [{"role": m.role, "content": m.content} for m in t.messages],
        "turns": [
            {
                "turn_index": turn.turn_index,
                "text": turn.text,
                "canonical_text": turn.canonical_text,
                "answers": list(turn.answers),
                "answer_norms": list(turn.answer_norms),
                "reward": turn.reward,
                "format_ok": turn.format_ok,
                "stop_reason": str(turn.stop_reason),
                "prompt_start": turn.prompt_start,
                "token_start": turn.token_start,
                "token_end": turn.token_end,
            }
            for turn in t.turns
        ],
        "token_ids": t.token_ids.tolist(),
        "logprobs": [None if np.isnan(x) else float(x) for x in t.logprobs],
        "first_success_turn": t.first_success_turn,
        "format_penalty": t.format_penalty,
        "num_turns": len(t.turns),
        "num_in_group": num_in_group,
        "end_reason": str(t.end_reason),
        "seed": t.seed,
    }


def test_the_content_of_a_part_is_known_by_its_hash() -> None:
    def content(*records: Trajectory) -> bytes:
        return trajectory_table(records).schema.metadata[CONTENT_KEY]

    one, other = trajectory("p", answers=["1"]), trajectory("p", answers=["2"])
    assert content(one) == content(trajectory("p", answers=["1"]))
    assert len({content(), content(one), content(other), content(one, other)}) == 4


@given(st.lists(trajectories(), max_size=3))
@settings(max_examples=25)
def test_records_become_rows_and_survive_parquet(records: list[Trajectory]) -> None:
    table = trajectory_table(records)
    assert table.schema.equals(TRAJECTORY_SCHEMA)
    assert TRAJECTORY_SCHEMA.metadata.items() < table.schema.metadata.items()
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    back = pq.read_table(pa.BufferReader(sink.getvalue()))
    check_table(back.schema, TRAJECTORY_SCHEMA, "memory")
    sizes = Counter(record.prompt_id for record in records)
    assert back.to_pylist() == [expected_row(each, sizes[each.prompt_id]) for each in records]


def test_every_row_knows_how_many_of_its_group_there_are() -> None:
    records = [trajectory("p", 0), trajectory("p", 2), trajectory("q", 1)]
    assert trajectory_table(records)["num_in_group"].to_pylist() == [2, 2, 1]


def test_no_trajectories_make_an_empty_table_of_the_same_schema() -> None:
    table = trajectory_table([])
    assert table.num_rows == 0
    assert table.schema.equals(TRAJECTORY_SCHEMA)
    assert TRAJECTORY_SCHEMA.metadata.items() < table.schema.metadata.items()


def test_log_probabilities_are_null_exactly_where_nothing_was_sampled() -> None:
    column = trajectory_table([trajectory("p", answers=["1", "2"])])["logprobs"].to_pylist()
    assert column == [[None, None, -0.5, -0.5]]


def test_common_readers_take_the_files_as_they_are(tmp_path: Path) -> None:
    import pandas as pd  # type: ignore[import-untyped]

    store = RunStore(str(tmp_path))
    store.write_table("rollouts/part-0.parquet", trajectory_table([trajectory("p")]))
    store.write_table("rollouts/part-1.parquet", trajectory_table([trajectory("q", success=True)]))
    frame = pd.read_parquet(tmp_path / "rollouts")
    assert frame["prompt_id"].tolist() == ["p", "q"]
    assert frame["turns"][1][0]["reward"] == 1.0
    assert frame["token_ids"][0].tolist() == [0, 1, 2]
    assert np.isnan(frame["logprobs"][0][:2]).all()
    assert pq.read_table(tmp_path / "rollouts")["first_success_turn"].to_pylist() == [None, 1]


def with_version(schema: pa.Schema, version: bytes | None) -> pa.Schema:
    return schema.with_metadata({} if version is None else {VERSION: version})


@pytest.mark.parametrize("schema", [TRAJECTORY_SCHEMA, WEIGHT_SCHEMA])
def test_both_schemas_carry_the_version(schema: pa.Schema) -> None:
    assert schema.metadata[VERSION] == str(SCHEMA_VERSION).encode()
    check_table(schema, schema, "x")


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (str(SCHEMA_VERSION + 1).encode(), [f"version {SCHEMA_VERSION + 1}", "Upgrade"]),
        (None, ["not written by drift_ray"]),
        (b"one", ["x/part-7.parquet"]),
    ],
)
def test_newer_and_foreign_files_are_refused_by_name(
    version: bytes | None, said: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        check_table(with_version(WEIGHT_SCHEMA, version), WEIGHT_SCHEMA, "x/part-7.parquet")
    assert all(part in str(caught.value) for part in ["x/part-7.parquet", *said])


@pytest.mark.parametrize("field", WEIGHT_SCHEMA.names)
def test_a_missing_or_mistyped_column_is_named(field: str) -> None:
    index = WEIGHT_SCHEMA.get_field_index(field)
    with pytest.raises(DataError, match=rf"x\.parquet: column '{field}' is missing"):
        check_table(WEIGHT_SCHEMA.remove(index), WEIGHT_SCHEMA, "x.parquet")
    with pytest.raises(DataError, match=rf"x\.parquet: column '{field}' is bool, expected"):
        check_table(
            WEIGHT_SCHEMA.set(index, pa.field(field, pa.bool_())), WEIGHT_SCHEMA, "x.parquet"
        )


def test_further_columns_and_another_order_do_no_harm() -> None:
    fields = [*reversed(list(WEIGHT_SCHEMA)), pa.field("note", pa.string())]
    check_table(pa.schema(fields, metadata=WEIGHT_SCHEMA.metadata), WEIGHT_SCHEMA, "x")
