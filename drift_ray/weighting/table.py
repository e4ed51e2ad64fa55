"""The summary of a weighting, and the comparison of several, as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from drift_ray.progress import console
from drift_ray.weighting.advice import Summary

_NONE = "-"


def print_summary(summary: Summary) -> None:
    """Show the figures of a summary, and its advice."""
    console.print(summary_table(summary))
    if verdicts := summary.get("verdicts"):
        console.print(
            f"by the verdicts {verdicts['name']!r}: {verdicts['num_without_verdict']:,} "
            f"trajectories without verdict left out, {verdicts['num_censored']:,} censored"
        )
    for sentence in summary["advice"]:
        console.print(f"[yellow]![/yellow] {sentence}")


def summary_table(summary: Summary) -> Table:
    """The figures of one summary, with what half and double β would make of the main ones."""
    cases = summary["what_if"]
    table = Table(title=f"weights {summary['name']!r}: {_counts(summary)}", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column(_heading(summary["beta"]), justify="right")
    for case in cases.values():
        table.add_column(_beta(case["beta"]), justify="right", style="dim")
    for label, value, others in _main_rows(summary):
        table.add_row(label, value, *others)
    table.add_section()
    for label, value in _other_rows(summary):
        table.add_row(label, value)
    return table


def sweep_table(rows: Sequence[Summary]) -> Table:
    """One line a weighting: see :func:`drift_ray.weighting.sweep.sweep`."""
    table = Table(
        title=_counts(rows[0]),
        title_justify="left",
        caption="ESS/G: effective sample size over group size. effective: trajectories of the run. "
        "largest: mean of a group's largest share. return: expected under the weights. "
        "failures: their share of the weight.",
        caption_justify="left",
    )
    headings = ("β", "γ", "ESS/G", "effective", "largest", "KL", "return", "π_ref", "failures")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        beta = row["beta"]
        table.add_row(
            _NONE if beta is None else f"{beta['p50']:.4g}",
            f"{row['parameters']['gamma']:g}",
            _percent(row["ess_frac"]["mean"]),
            f"{row['effective_num_trajectories']:,.0f}",
            _percent(row["largest_share"]["mean"]),
            _number(row["kl_estimate"]),
            _number(row["expected_return"]["weighted"]),
            _number(row["expected_return"]["reference"]),
            _percent(row["weight_frac_by_first_success_turn"]["never"]),
        )
    return table


def _main_rows(summary: Summary) -> list[tuple[str, str, list[str]]]:
    cases = summary["what_if"].values()
    return [
        (
            "ESS / group size",
            _percent(summary["ess_frac"]["mean"]),
            [_percent(case["ess_frac"]) for case in cases],
        ),
        (
            "effective trajectories",
            f"{summary['effective_num_trajectories']:,.0f}",
            [f"{case['effective_num_trajectories']:,.0f}" for case in cases],
        ),
        (
            "largest share of a group",
            _percent(summary["largest_share"]["mean"]),
            [_percent(case["largest_share"]) for case in cases],
        ),
        (
            "expected return, weighted",
            _number(summary["expected_return"]["weighted"]),
            [_number(case["expected_return"]) for case in cases],
        ),
        (
            "KL(π*‖π_ref), nats",
            _number(summary["kl_estimate"]),
            [_number(case["kl_estimate"]) for case in cases],
        ),
    ]


def _other_rows(summary: Summary) -> list[tuple[str, str]]:
    quantiles = (summary["ess_frac"][name] for name in ("p10", "p50", "p90"))
    by_turn = summary["weight_frac_by_first_success_turn"].items()
    removed = {name: share for name, share in summary["removed_mass_frac"].items() if share}
    rows = [
        ("ESS / group: p10 p50 p90", " ".join(map(_percent, quantiles))),
        ("expected return of π_ref", _number(summary["expected_return"]["reference"])),
        ("groups all failed", _percent(summary["all_failed_frac"])),
        ("groups all solved", _percent(summary["all_solved_frac"])),
        ("weight by success turn", " ".join(f"{k}:{_percent(v)}" for k, v in by_turn)),
        ("with a turn cut off", _percent(summary["truncated"]["trajectory_frac"])),
        ("with a turn without answer", _percent(summary["format_failed"]["trajectory_frac"])),
    ]
    return rows + [(f"taken by {name}", _percent(share)) for name, share in removed.items()]


def _counts(summary: Summary) -> str:
    return f"{summary['num_trajectories']:,} trajectories, {summary['num_groups']:,} prompts"


def _heading(beta: dict[str, Any] | None) -> str:
    if beta is None:
        return ""
    if beta["min"] == beta["max"]:
        return _beta(beta["p50"])
    return f"β {beta['min']:.3g} … {beta['max']:.3g}"


def _beta(value: float | None) -> str:
    return _NONE if value is None else f"β {value:.4g}"


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3f}"
