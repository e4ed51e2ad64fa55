"""Returns, importance weights and evaluation metrics equal those of the DRIFT reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from drift_ray.evaluation.metrics import success_metrics
from drift_ray.weighting.groups import Groups
from drift_ray.weighting.importance import importance_weights
from drift_ray.weighting.returns import discounted_return, repetition_penalty, shaped_return
from tests.conformance.cases import check_all, load

REFERENCE_EPSILON = 1e-12
"""What the reference adds to a group's mean before it divides by it."""

WEIGHT_ROWS = load("importance_weights")


def column(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows])


@pytest.mark.parametrize("number", sorted({row["case"] for row in WEIGHT_ROWS}))
def test_returns_and_weights(number: int) -> None:
    rows = [row for row in WEIGHT_ROWS if row["case"] == number]
    rewards = np.array([list(row["turn_rewards"].values()) for row in rows])
    turn_offsets = np.arange(len(rows) + 1) * rewards.shape[1]
    norms = [row["answer_norms"] for row in rows]
    answer_offsets = np.cumsum([0, *map(len, norms)])
    flat_norms = pa.array([norm for row in norms for norm in row], pa.string())
    groups, beta = Groups.of(column(rows, "prompt_id")), rows[0]["beta"]

    discounted = discounted_return(rewards.ravel(), turn_offsets, gamma=rows[0]["gamma"])
    repetition = repetition_penalty(flat_norms, answer_offsets, coefficient=0.5)
    shaped = shaped_return(discounted, column(rows, "format_penalty"), repetition)
    weights = importance_weights(shaped, groups, beta=beta)

    assert discounted == pytest.approx(column(rows, "discounted_return"), rel=1e-12)
    assert repetition == pytest.approx(column(rows, "repetition_penalty"), rel=1e-12)
    # mean(exp((R - max)/β)) = exp(0)/w of the best; the reference's weights are too small by
    # the factor mean/(mean + epsilon), at most 1.6e-11 for a group of 16.
    best = groups.spread(groups.max(weights))
    exact = column(rows, "weight") * (1.0 + REFERENCE_EPSILON * best)
    assert weights == pytest.approx(exact, rel=1e-12, abs=0.0)


def test_evaluation_metrics() -> None:
    def check(case: dict[str, Any]) -> None:
        max_turns, expected = case["max_turns"], case["expected"]
        first = np.array([turn or 0 for turn in case["first_correct_turn"]])
        ids = np.arange(len(first))
        metrics = success_metrics(
            ids, first, np.where(first > 0, first, max_turns), max_turns=max_turns
        )

        assert metrics["num_trajectories"] == metrics["num_prompts"] == expected["total_samples"]
        assert {
            f"turn_{row['turn']}": {
                "attempts": row["num_attempts"],
                "correct": row["num_correct"],
                # The reference calls a rate of nothing 0.
                "accuracy": pytest.approx(row["accuracy"] or 0.0, rel=1e-12),
            }
            for row in metrics["per_turn"]
        } == expected["per_turn"]
        assert {
            f"by_turn_{row['k']}": {
                "correct": row["num_correct"],
                "accuracy": pytest.approx(row["estimate"], rel=1e-12),
            }
            for row in metrics["success_at"]
        } == expected["cumulative"]
        assert {
            f"turn_{row['turn']}": {
                "wrong_before": row["num_wrong_before"],
                "corrected": row["num_corrected"],
                "rate": pytest.approx(row["rate"] or 0.0, rel=1e-12),
            }
            for row in metrics["correction_rate"]
        } == expected["correction_rate"]
        assert metrics["success_at"][-1]["num_correct"] == expected["overall"]["correct"]

    check_all("evaluation_metrics", check)
