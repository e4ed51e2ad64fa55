"""Evaluation metrics of trajectories."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.errors import DataError
from drift_ray.evaluation.intervals import clustered_interval
from drift_ray.evaluation.metrics import (
    evaluation_metrics,
    repeated_turns,
    success_metrics,
)
from drift_ray.schema import TRAJECTORY_SCHEMA


def test_turns_and_corrections() -> None:
    metrics = success_metrics(
        ["a", "a", "b", "c", "c"],
        np.array([1, 2, 0, 2, -1]),
        np.array([1, 2, 3, 2, 1]),  # the last one ran out of context after its first turn
        max_turns=3,
    )
    assert (metrics["num_prompts"], metrics["num_trajectories"]) == (3, 5)
    assert [(r["k"], r["num_correct"], r["estimate"]) for r in metrics["success_at"]] == [
        (1, 1, 0.2),
        (2, 3, 0.6),
        (3, 3, 0.6),
    ]
    assert [(r["num_attempts"], r["num_correct"]) for r in metrics["per_turn"]] == [
        (5, 1),
        (3, 2),
        (1, 0),
    ]
    interval = clustered_interval(np.array([True, False, True]), ["a", "b", "c"])
    assert metrics["correction_rate"][0] == {
        "turn": 2,
        "num_wrong_before": 3,
        "num_corrected": 2,
        "rate": pytest.approx(2 / 3),
        "low": interval.low,
        "high": interval.high,
    }
    assert metrics["per_turn"][1]["accuracy"] == pytest.approx(2 / 3)
    assert metrics["per_turn"][1]["low"] == interval.low


def test_a_turn_nobody_reached_has_no_rate() -> None:
    metrics = success_metrics(["a"], np.array([1]), np.array([1]), max_turns=2)
    assert metrics["per_turn"][1] == {
        "turn": 2,
        "num_attempts": 0,
        "num_correct": 0,
        "accuracy": None,
        "low": None,
        "high": None,
    }
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


@given(st.lists(st.integers(0, 7), min_size=1, max_size=40), st.integers(1, 7))
def test_success_grows_with_k(first: list[int], max_turns: int) -> None:
    turns = np.array(first)
    played = np.where(turns > 0, turns, 7)
    metrics = success_metrics(np.arange(len(turns)), turns, played, max_turns=max_turns)
    solved = [row["num_correct"] for row in metrics["success_at"]]
    assert solved == [int(np.sum((turns >= 1) & (turns <= k))) for k in range(1, max_turns + 1)]
    assert solved == np.cumsum([row["num_correct"] for row in metrics["per_turn"]]).tolist()


answers = st.lists(st.sampled_from(["1", "2", "3"]), max_size=3)


@given(st.lists(st.lists(answers, max_size=4), max_size=6))
def test_repeated_turns(trajectories: list[list[list[str]]]) -> None:
    turns = [turn for trajectory in trajectories for turn in trajectory]
    expected = [
        bool(turn) and set(turn) <= {a for earlier in trajectory[:k] for a in earlier}
        for trajectory in trajectories
        for k, turn in enumerate(trajectory)
    ]
    found = repeated_turns(
        pa.array([answer for turn in turns for answer in turn], pa.string()),
        np.cumsum([0, *map(len, turns)]),
        np.cumsum([0, *map(len, trajectories)]),
    )
    assert found.tolist() == expected


def make_table() -> pa.Table:
    def turn(*norms: str) -> dict[str, object]:
        return {
            "answer_norms": list(norms),
            "format_ok": bool(norms),
            "token_start": 5,
            "token_end": 7 + len(norms),
        }

    turns = [
        [turn("9")],
        [turn("1"), turn(), turn("1")],
        [turn("2"), turn("1")],
        [turn(), turn("3"), turn("3"), turn("3")],
    ]
    return pa.table(
        {
            "prompt_id": ["z", "a", "a", "b"],
            "first_success_turn": pa.array([1, None, 2, None], pa.int32()),
            "num_turns": pa.array([len(row) for row in turns], pa.int32()),
            "turns": pa.array(turns, TRAJECTORY_SCHEMA.field("turns").type),
        }
    )


def counts(share: dict[str, Any]) -> tuple[int, int, float]:
    assert share["low"] < share["rate"] < share["high"]
    return share["num"], share["num_turns"], share["rate"]


def test_evaluation_metrics_of_a_table_and_of_its_slices() -> None:
    table = make_table()
    metrics = evaluation_metrics(table, max_turns=4)
    assert counts(metrics["repeated_answers"]) == (3, 6, 0.5)
    assert counts(metrics["format_failures"]) == (2, 10, 0.2)
    assert [row["num_correct"] for row in metrics["success_at"]] == [1, 2, 2, 2]
    tokens = metrics["tokens_per_solved"]
    assert (tokens["num_tokens"], tokens["num_solved"], tokens["estimate"]) == (28, 2, 14.0)
    assert 0 < tokens["low"] < 14 < tokens["high"]

    tail = evaluation_metrics(table.slice(2), max_turns=4)
    assert counts(tail["repeated_answers"]) == (2, 4, 0.5)
    assert counts(tail["format_failures"]) == (1, 6, pytest.approx(1 / 6))
    assert tail["tokens_per_solved"]["num_tokens"] == 6 + 11
    swapped = pa.concat_tables([table.slice(2), table.slice(0, 2)])
    assert evaluation_metrics(swapped, max_turns=4) == metrics


def test_rates_of_turns_are_clustered_by_prompt() -> None:
    metrics = evaluation_metrics(make_table(), max_turns=4)
    bad = np.array([0, 0, 1, 0, 0, 0, 1, 0, 0, 0], bool)
    interval = clustered_interval(bad, ["z", *"aaaaa", *"bbbb"])
    assert metrics["format_failures"]["low"] == interval.low
    assert metrics["format_failures"]["high"] == interval.high


def test_trajectories_that_failed_are_counted_and_not_scored() -> None:
    table = make_table()
    whole = evaluation_metrics(table, max_turns=4)
    some = evaluation_metrics(
        table, max_turns=4, num_expected=6, failure_causes=["replica", "grader"]
    )
    assert whole.pop("missing") == {"num_expected": 4, "num_missing": 0, "failures": {}}
    assert some.pop("missing") == {
        "num_expected": 6,
        "num_missing": 2,
        "failures": {"grader": 1, "replica": 1},
    }
    assert some == whole


def test_without_a_success_there_is_no_price_for_one() -> None:
    metrics = evaluation_metrics(make_table().slice(3), max_turns=4)
    assert metrics["tokens_per_solved"] == {
        "num_tokens": 11,
        "num_solved": 0,
        "estimate": None,
        "low": None,
        "high": None,
    }
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_no_trajectories_are_refused() -> None:
    with pytest.raises(DataError, match="no trajectories"):
        evaluation_metrics(make_table().slice(0, 0), max_turns=4)
