"""Evaluation metrics of several models as one table on screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def success_table(metrics: Mapping[str, Mapping[str, Any]]) -> Table:
    """Success@k of each model with its 95 % interval, then the rates that explain it.

    Args:
        metrics: Metrics (see ``evaluation_metrics``) by model name, in the order of the columns.
    """
    first = next(iter(metrics.values()))
    table = Table(title=f"{first['num_prompts']} held-out prompts, 95 % intervals")
    table.add_column("", no_wrap=True)
    for name in metrics:
        table.add_column(name, justify="right", no_wrap=True)
    for index in range(first["max_turns"]):
        cells = [_interval(each["success_at"][index]) for each in metrics.values()]
        table.add_row(f"success@{index + 1}", *cells)
    table.add_section()
    for label, key in (("repeated answers", "repeated_answers"), ("no answer", "format_failures")):
        table.add_row(label, *(_rate(each[key]["rate"]) for each in metrics.values()))
    table.add_row("tokens per solved", *(_tokens(each) for each in metrics.values()))
    if any(each["missing"]["num_missing"] for each in metrics.values()):
        table.add_row("missing", *(_missing(each["missing"]) for each in metrics.values()))
    return table


def _interval(row: Mapping[str, float]) -> str:
    return f"{row['estimate']:.3f}  [{row['low']:.3f}, {row['high']:.3f}]"


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1%}"


def _tokens(metrics: Mapping[str, Any]) -> str:
    tokens = metrics["tokens_per_solved"]["estimate"]
    return "-" if tokens is None else f"{tokens:,.0f}"


def _missing(missing: Mapping[str, Any]) -> str:
    return f"{missing['num_missing']:,} of {missing['num_expected']:,}"
