"""The summary of a weighted set of trajectories."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_ray.config import WeightingConfig
from drift_ray.weighting.diagnostics import group_statistics, summarize, turn_masses
from drift_ray.weighting.importance import importance_weights
from drift_ray.weighting.weigh import weigh_groups
from drift_ray.weighting.weightings import Rows
from tests.unit.weighting_cases import Group, group_lists, make_rows, records, returns_of


def summary_of(rows: Rows, weight: np.ndarray, **given: Any) -> dict[str, Any]:
    nothing = np.zeros(len(weight), bool)
    arguments = {
        "beta": np.full(len(rows.groups), 0.1),
        "removed": {},
        "flags": {"truncated": nothing, "format_failed": nothing},
        "what_if": {},
    } | given
    return summarize(group_statistics(weight, rows, **arguments), turn_masses(weight, rows))


def test_a_small_example_by_hand() -> None:
    summary = summary_of(
        make_rows([1.0, 0.0, -0.1, -0.3], ["a", "a", "b", "b"], [1, 0, 0, 0]),
        np.array([2.0, 0.0, 1.0, 1.0]),
        removed={"clip": np.array([0.0, 1.0])},
        flags={
            "truncated": np.array([False, True, False, False]),
            "format_failed": np.array([True, False, True, False]),
        },
    )
    assert json.loads(json.dumps(summary)) == {
        "num_groups": 2,
        "num_trajectories": 4,
        "num_weightless_groups": 0,
        "num_negative": 0,
        "all_failed_frac": 0.5,
        "all_solved_frac": 0.0,
        "effective_num_trajectories": pytest.approx(16 / 6),
        "ess": {"mean": 1.5, "min": 1.0},
        "ess_frac": {
            "mean": 0.75,
            "min": 0.5,
            "p10": pytest.approx(0.55),
            "p50": 0.75,
            "p90": pytest.approx(0.95),
            "max": 1.0,
            "histogram": [0, 0, 0, 0, 0, 1, 0, 0, 0, 1],
        },
        "largest_share": {"mean": 0.75, "max": 1.0},
        "trajectory_frac_by_first_success_turn": {"1": 0.25, "never": 0.75},
        "weight_frac_by_first_success_turn": {"1": 0.5, "never": 0.5},
        "expected_return": {"reference": pytest.approx(0.15), "weighted": pytest.approx(0.4)},
        "kl_estimate": pytest.approx(np.log(2) / 2),
        "truncated": {"trajectory_frac": 0.25, "weight_frac": 0.0},
        "format_failed": {"trajectory_frac": 0.5, "weight_frac": 0.75},
        "removed_mass_frac": {"clip": 0.2},
        "beta": {"min": 0.1, "p50": 0.1, "max": 0.1, "at_bound": 0.0},
        "what_if": {},
    }


def test_weightless_groups_are_counted_and_left_out_of_the_means() -> None:
    rows = make_rows([0.0, 0.0, 0.9], [0, 0, 1], [0, 0, 2])
    summary = summary_of(rows, np.array([0.0, 0.0, 1.0]))
    assert summary["num_weightless_groups"] == 1
    assert summary["ess"] == {"mean": 1.0, "min": 1.0}
    assert summary["expected_return"] == {"reference": 0.9, "weighted": 0.9}
    assert summary["weight_frac_by_first_success_turn"] == {"1": 0.0, "2": 1.0, "never": 0.0}


def test_signed_weights_are_no_distribution() -> None:
    returns = returns_of(records([[(["1"], True), (["2"], False), (["3", "4"], False)]]))
    weighed = weigh_groups(returns, WeightingConfig(method="group_advantage"), run_beta=None)
    summary = summarize(weighed.groups, weighed.turns)
    assert summary["num_negative"] == 2
    assert summary["kl_estimate"] is None
    assert summary["expected_return"]["weighted"] is None
    assert summary["beta"] is None
    assert 1 <= summary["ess"]["mean"] <= 3
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize("num_rows", [0, 3])
def test_nothing_to_weigh_is_still_json(num_rows: int) -> None:
    summary = summary_of(make_rows([0.0] * num_rows, [0] * num_rows), np.zeros(num_rows))
    json.dumps(summary, allow_nan=False)
    assert summary["ess"] == {"mean": None, "min": None}
    assert summary["num_weightless_groups"] == (1 if num_rows else 0)
    assert summary["effective_num_trajectories"] == 0


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.floats(-1, 1), st.integers(0, 5)),
        min_size=1,
        max_size=30,
    ),
    st.floats(1e-3, 1e3),
)
def test_bounds(rows: list[tuple[str, float, int]], beta: float) -> None:
    ids, returns, first = zip(*rows, strict=True)
    made = make_rows(returns, ids, first)
    summary = summary_of(made, importance_weights(made.shaped_return, made.groups, beta=beta))
    expected = summary["expected_return"]
    assert expected["weighted"] >= expected["reference"] - 1e-12  # tilting towards R raises R
    assert 0 <= summary["kl_estimate"] <= np.log(len(rows)) + 1e-12
    assert 0 < summary["ess_frac"]["min"] <= summary["ess_frac"]["max"] <= 1 + 1e-12
    assert sum(summary["ess_frac"]["histogram"]) == summary["num_groups"]
    assert summary["largest_share"]["mean"] <= summary["largest_share"]["max"] <= 1 + 1e-12
    assert 1 - 1e-9 <= summary["effective_num_trajectories"] <= len(rows) + 1e-9
    for key in ("trajectory_frac_by_first_success_turn", "weight_frac_by_first_success_turn"):
        assert sum(summary[key].values()) == pytest.approx(1.0)
    json.dumps(summary, allow_nan=False)


@settings(max_examples=15)
@given(group_lists, group_lists)
def test_statistics_of_parts_are_put_together(one: list[Group], two: list[Group]) -> None:
    config = WeightingConfig()
    # All groups at once, and in two lots as if they came from two parts.
    cut = sum(map(len, one))
    table = returns_of(records(one + two))
    whole = weigh_groups(table, config, run_beta=None)
    parts = [
        weigh_groups(piece, config, run_beta=None)
        for piece in (table.slice(0, cut), table.slice(cut))
    ]
    together = summarize(
        pa.concat_tables([part.groups for part in parts]),
        pa.concat_tables([part.turns for part in parts]),
    )
    assert leaves(together) == pytest.approx(leaves(summarize(whole.groups, whole.turns)))


def leaves(value: Any, name: str = "") -> dict[str, float]:
    if isinstance(value, dict):
        return {k: v for key in value for k, v in leaves(value[key], f"{name}.{key}").items()}
    if isinstance(value, list):
        return {f"{name}.{i}": each for i, each in enumerate(value)}
    return {name: -1.0 if value is None else value}


@settings(max_examples=15)
@given(group_lists, st.sampled_from([0.05, 0.1, 0.7]))
def test_what_if_is_what_would_be(groups: list[Group], beta: float) -> None:
    table = returns_of(records(groups))

    def summary(value: float) -> dict[str, Any]:
        weighed = weigh_groups(table, WeightingConfig(beta=value), run_beta=None)
        return summarize(weighed.groups, weighed.turns)

    foretold = summary(beta)["what_if"]
    for case, factor in (("half", 0.5), ("double", 2.0)):
        found = summary(factor * beta)
        assert foretold[case] == pytest.approx(
            {
                "beta": factor * beta,
                "ess_frac": found["ess_frac"]["mean"],
                "effective_num_trajectories": found["effective_num_trajectories"],
                "largest_share": found["largest_share"]["mean"],
                "expected_return": found["expected_return"]["weighted"],
                "kl_estimate": found["kl_estimate"],
            }
        )
