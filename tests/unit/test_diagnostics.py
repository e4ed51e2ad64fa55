"""The summary of a weighted set of trajectories."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.weighting.diagnostics import summarize
from drift_ray.weighting.importance import importance_weights


def test_a_small_example_by_hand() -> None:
    summary = summarize(
        group_ids=np.array(["a", "a", "b", "b"]),
        importance_weight=np.array([2.0, 0.0, 1.0, 1.0]),
        shaped_return=np.array([1.0, 0.0, -0.1, -0.3]),
        first_success_turn=np.array([1, -1, 0, 0]),
    )
    assert json.loads(json.dumps(summary)) == {
        "num_groups": 2,
        "num_trajectories": 4,
        "num_weightless_groups": 0,
        "all_failed_frac": 0.5,
        "all_solved_frac": 0.0,
        "ess": {"mean": 1.5, "min": 1.0},
        "ess_frac": {
            "mean": 0.75,
            "p10": pytest.approx(0.55),
            "p50": 0.75,
            "p90": pytest.approx(0.95),
        },
        "largest_share": {"mean": 0.75, "max": 1.0},
        "trajectory_frac_by_first_success_turn": {"1": 0.25, "never": 0.75},
        "weight_frac_by_first_success_turn": {"1": 0.5, "never": 0.5},
        "expected_return": {"reference": pytest.approx(0.15), "weighted": pytest.approx(0.4)},
        "kl_estimate": pytest.approx(np.log(2) / 2),
    }


def test_weightless_groups_are_counted_and_left_out_of_the_means() -> None:
    summary = summarize(
        group_ids=[0, 0, 1],
        importance_weight=np.array([0.0, 0.0, 1.0]),
        shaped_return=np.array([0.0, 0.0, 0.9]),
        first_success_turn=np.array([0, 0, 2]),
    )
    assert summary["num_weightless_groups"] == 1
    assert summary["ess"] == {"mean": 1.0, "min": 1.0}
    assert summary["expected_return"] == {"reference": 0.9, "weighted": 0.9}
    assert summary["weight_frac_by_first_success_turn"] == {"1": 0.0, "2": 1.0, "never": 0.0}


@pytest.mark.parametrize("num_rows", [0, 3])
def test_nothing_to_weigh_is_still_json(num_rows: int) -> None:
    summary = summarize(
        group_ids=np.zeros(num_rows, dtype=int),
        importance_weight=np.zeros(num_rows),
        shaped_return=np.zeros(num_rows),
        first_success_turn=np.zeros(num_rows, dtype=int),
    )
    json.dumps(summary, allow_nan=False)
    assert summary["ess"] == {"mean": None, "min": None}
    assert summary["num_weightless_groups"] == (1 if num_rows else 0)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.floats(-1, 1), st.integers(-1, 5)),
        min_size=1,
        max_size=30,
    ),
    st.floats(1e-2, 1e2),
)
def test_bounds(rows: list[tuple[str, float, int]], beta: float) -> None:
    groups, returns, first = (np.array(column) for column in zip(*rows, strict=True))
    summary = summarize(
        group_ids=groups,
        importance_weight=importance_weights(returns, groups, beta=beta),
        shaped_return=returns,
        first_success_turn=first,
    )
    expected = summary["expected_return"]
    assert expected["weighted"] >= expected["reference"] - 1e-12  # tilting towards R raises R
    assert -1e-12 <= summary["kl_estimate"] <= np.log(len(rows)) + 1e-12
    assert 0 < summary["ess_frac"]["p10"] <= summary["ess_frac"]["p90"] <= 1 + 1e-12
    assert summary["largest_share"]["mean"] <= summary["largest_share"]["max"] <= 1 + 1e-12
    for key in ("trajectory_frac_by_first_success_turn", "weight_frac_by_first_success_turn"):
        assert sum(summary[key].values()) == pytest.approx(1.0)
    json.dumps(summary, allow_nan=False)
