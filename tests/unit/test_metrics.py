"""Evaluation metrics and their intervals."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.errors import DataError
from drift_ray.evaluation.metrics import (
    clustered_interval,
    evaluation_metrics,
    repeated_turns,
    success_metrics,
)
from drift_ray.schema import TRAJECTORY_SCHEMA

samples = st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=1, max_size=60)


def plain_wilson(successes: int, n: int) -> tuple[float, float]:
    z, p = 1.959963984540054, successes / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


@given(samples)
def test_interval_contains_its_estimate(rows: list[tuple[bool, int]]) -> None:
    success, clusters = (np.array(column) for column in zip(*rows, strict=True))
    interval = clustered_interval(success, clusters)
    assert interval.estimate == pytest.approx(success.mean())
    assert 0.0 <= interval.low <= interval.estimate <= interval.high <= 1.0
    assert interval.high - interval.low > 0.01  # never certain, even at 0 and 1


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_one_sample_a_prompt_is_the_plain_wilson_interval(success: list[bool]) -> None:
    interval = clustered_interval(np.array(success), np.arange(len(success)))
    low, high = plain_wilson(sum(success), len(success))
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-12)


@given(samples, st.randoms())
def test_interval_ignores_order_and_names(rows: list[tuple[bool, int]], random: object) -> None:
    success, clusters = (np.array(column) for column in zip(*rows, strict=True))
    order = np.array(sorted(range(len(rows)), key=lambda _: random.random()))  # type: ignore[attr-defined]
    names = np.array([f"p{cluster}" for cluster in clusters])
    one = clustered_interval(success, clusters)
    other = clustered_interval(success[order], names[order])
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=1e-9)


def test_copies_of_a_sample_add_no_certainty() -> None:
    success = np.arange(100) % 3 == 0
    once = clustered_interval(success, np.arange(100))
    copied = clustered_interval(np.repeat(success, 8), np.repeat(np.arange(100), 8))
    naive = clustered_interval(np.repeat(success, 8), np.arange(800))
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=1e-3)
    assert naive.high - naive.low < 0.5 * (copied.high - copied.low)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(60), 4)
    ability = rng.beta(0.2, 1.8, size=(1000, 60))  # mean 0.1, samples of a prompt strongly alike
    draws = rng.random((1000, 240)) < np.repeat(ability, 4, axis=1)
    intervals = [clustered_interval(draw, prompts) for draw in draws]
    covered = np.mean([interval.low <= 0.1 <= interval.high for interval in intervals])
    assert 0.92 <= covered <= 0.98


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
    assert metrics["correction_rate"][0] == {
        "turn": 2,
        "num_wrong_before": 3,
        "num_corrected": 2,
        "rate": pytest.approx(2 / 3),
    }


def test_a_turn_nobody_reached_has_no_rate() -> None:
    metrics = success_metrics(["a"], np.array([1]), np.array([1]), max_turns=2)
    assert metrics["per_turn"][1] == {
        "turn": 2,
        "num_attempts": 0,
        "num_correct": 0,
        "accuracy": None,
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
        return {"answer_norms": list(norms), "format_ok": bool(norms)}

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


def test_evaluation_metrics_of_a_table_and_of_its_slices() -> None:
    table = make_table()
    metrics = evaluation_metrics(table, max_turns=4)
    assert metrics["repeated_answers"] == {"num": 3, "num_turns": 6, "rate": 0.5}
    assert metrics["format_failures"] == {"num": 2, "num_turns": 10, "rate": 0.2}
    assert [row["num_correct"] for row in metrics["success_at"]] == [1, 2, 2, 2]

    tail = evaluation_metrics(table.slice(2), max_turns=4)
    assert tail["repeated_answers"] == {"num": 2, "num_turns": 4, "rate": 0.5}
    assert tail["format_failures"] == {"num": 1, "num_turns": 6, "rate": pytest.approx(1 / 6)}
    swapped = pa.concat_tables([table.slice(2), table.slice(0, 2)])
    assert evaluation_metrics(swapped, max_turns=4) == metrics


def test_no_trajectories_are_refused() -> None:
    with pytest.raises(DataError, match="no trajectories"):
        evaluation_metrics(make_table().slice(0, 0), max_turns=4)
