"""Advice in words, the gate, and what is shown of a summary."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
from rich.console import Console

from drift_ray.config import GateConfig, WeightingConfig
from drift_ray.errors import StageError
from drift_ray.weighting.advice import advice, check_gate
from drift_ray.weighting.diagnostics import summarize
from drift_ray.weighting.table import summary_table, sweep_table
from drift_ray.weighting.weigh import weigh_groups
from tests.unit.weighting_cases import Group, records, returns_of

FINE: list[Group] = [[(["1"], True), (["2", "1"], True), (["2", "3"], False), (["2", "2"], False)]]
FAILED: list[Group] = [[(["2"], False), (["2", "2"], False)]]
SOLVED: list[Group] = [[(["1"], True), (["1"], True)]]


def summary_of(groups: list[Group], **settings: Any) -> tuple[dict[str, Any], WeightingConfig]:
    config = WeightingConfig(**settings)
    weighed = weigh_groups(returns_of(records(groups), config), config, run_beta=None)
    return summarize(weighed.groups, weighed.turns), config


def said(groups: list[Group], **settings: Any) -> str:
    return "\n".join(advice(*summary_of(groups, **settings)))


def test_nothing_is_said_where_nothing_stands_out() -> None:
    assert said(FINE, beta=0.3) == ""
    assert said([]) == ""


@pytest.mark.parametrize(
    ("groups", "settings", "words"),
    [
        (
            [[(["1"], True)] + [(["2"], False)] * 15],
            {"beta": 0.01},
            ["A group of 16 counts like 1.0", "Raise weighting.beta (at 0.02"],
        ),
        (FINE, {"beta": 1e3}, ["hardly tell", "Lower weighting.beta (at 500"]),
        (FAILED, {}, ["Nobody solved 100%", "keep full weight", "all_failed=drop"]),
        (SOLVED, {}, ["Every trajectory of 100%", "harder"]),
        (SOLVED, {"beta": {"ess_frac": 0.4, "per": "group"}}, ["In 100% of the groups no β"]),
        (FINE, {"beta": 0.1, "clip": 1.1}, ["weighting.clip took"]),
    ],
)
def test_what_stands_out_is_said_with_the_knob(
    groups: list[Group], settings: dict[str, Any], words: list[str]
) -> None:
    text = said(groups, **settings)
    assert all(word in text for word in words), text


def test_texts_that_were_cut_off_or_unreadable() -> None:
    summary, config = summary_of(FINE, beta=0.3)
    summary = copy.deepcopy(summary)
    summary["truncated"] = {"trajectory_frac": 0.5, "weight_frac": 0.25}
    summary["format_failed"] = {"trajectory_frac": 0.4, "weight_frac": 0.1}
    cut, unread = advice(summary, config)
    assert "50%" in cut
    assert "25%" in cut
    assert "max_tokens" in cut
    assert "40%" in unread
    assert "system_prompt" in unread


@pytest.mark.parametrize(
    ("gate", "groups", "words"),
    [
        ({"min_ess_frac": 0.99}, FINE, ["effective sample size", "raise weighting.beta"]),
        ({"min_effective_trajectories": 9}, FINE, ["effective number", "is 9"]),
        ({"max_largest_share": 0.3}, FINE, ["largest weight", "max_largest_share is 0.3"]),
        ({"max_all_failed_frac": 0.4}, FINE + FAILED, ["nobody solved is 0.5", "grader"]),
        ({"max_truncated_frac": 0.0, "max_format_failed_frac": 0.0}, FINE, []),
    ],
)
def test_the_gate_names_figure_bound_and_knob(
    gate: dict[str, float], groups: list[Group], words: list[str]
) -> None:
    summary, _ = summary_of(groups)
    check_gate(summary, GateConfig(), "here")
    if not words:
        check_gate(summary, GateConfig(**gate), "here")
        return
    with pytest.raises(StageError) as caught:
        check_gate(summary, GateConfig(**gate), "here/summary.json")
    assert all(word in str(caught.value) for word in [*words, "here/summary.json"]), caught.value
    passed = {name: 0.0 if name.startswith("min") else 1.0 for name in gate}
    check_gate(summary, GateConfig(**{k: v or 1e-9 for k, v in passed.items()}), "here")


def test_all_that_is_missed_is_named_and_what_cannot_be_known_is_missed() -> None:
    summary, _ = summary_of(FAILED, all_failed="drop")
    gate = GateConfig(min_ess_frac=0.1, max_all_failed_frac=0.5, max_largest_share=0.5)
    with pytest.raises(StageError) as caught:
        check_gate(summary, gate, "here")
    message = str(caught.value)
    assert message.count("weighting.gate.") == 3
    assert message.count("unknown: no group carries weight") == 2


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta": {"kl": 0.2, "per": "group"}},
        {"method": "group_advantage"},
        {"all_failed": "drop", "clip": 1.2},
    ],
)
def test_summaries_can_be_shown(settings: dict[str, Any]) -> None:
    summary, config = summary_of(FINE + FAILED + SOLVED, **settings)
    summary |= {"name": config.name, "parameters": config.model_dump(mode="json")}
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(summary_table(summary))
    console.print(sweep_table([summary, summary]))
    text = console.export_text()
    assert "8 trajectories, 3 prompts" in text
    assert f"{summary['ess_frac']['mean']:.1%}" in text
    assert "33.3%" in text
    if "clip" in settings:
        assert "taken by clip" in text
        assert "taken by all_failed" in text
