"""What a rescoring found, as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from drift_ray.progress import console

_LONGEST = 40
_WORDS = {True: "correct", False: "wrong"}


def print_rescoring(summary: dict[str, Any], flips: Sequence[dict[str, Any]]) -> None:
    """Show what changed, and the first flipped verdicts."""
    num_flips = sum(summary["num_flips"].values())
    if flips:
        console.print(_flip_table(flips, num_flips))
    weights = summary["weights"]
    console.print(
        f"{summary['num_trajectories']:,} trajectories judged by {summary['grader']} instead of "
        f"{summary['recorded_grader']}: {num_flips:,} verdicts flipped "
        f"({summary['num_flips']['to_correct']:,} to correct, "
        f"{summary['num_flips']['to_wrong']:,} to wrong), "
        f"{summary['num_solved_before']:,} → {summary['num_solved_after']:,} solved",
        markup=False,
    )
    console.print(
        f"{summary['num_censored']:,} censored (ended by an answer that is wrong now), "
        f"{summary['num_without_verdict']:,} without verdict (left out of the weights)"
    )
    before, after = weights["before"], weights["after"]
    change = weights["largest_change"]
    largest = f", the largest {change['before']:.3f} → {change['after']:.3f}" if change else ""
    console.print(
        f"{weights['num_changed']:,} importance weights change{largest}; effective sample size "
        f"{_percent(before['ess_frac'])} → {_percent(after['ess_frac'])} of a group"
    )


def _flip_table(flips: Sequence[dict[str, Any]], num_flips: int) -> Table:
    more = f", the first {len(flips)} of {num_flips:,}" if num_flips > len(flips) else ""
    table = Table(title=f"flipped verdicts{more}", title_justify="left")
    for heading in ("prompt", "trajectory", "turn", "answer", "gold", "was", "is"):
        table.add_column(heading)
    for flip in flips:
        table.add_row(
            flip["prompt_id"],
            str(flip["trajectory_index"]),
            str(flip["turn_index"]),
            _short(flip["answer"]),
            _short(flip["gold"]),
            _WORDS[flip["was_correct"]],
            _WORDS[flip["is_correct"]],
        )
    return table


def _short(text: str) -> Text:
    # Not markup: answers may hold brackets.
    return Text(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
