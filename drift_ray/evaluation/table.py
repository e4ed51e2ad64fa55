"""Evaluation metrics of several models, and how they differ, as tables on screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Metrics = Mapping[str, Any]
_NUM_IDS = 5
_MAX_ID_LENGTH = 24


def success_table(results: Mapping[str, Mapping[str, Metrics]]) -> Table:
    """Success@k of each model with its 95 % interval, then the rates that explain it.

    Args:
        results: By task or benchmark, metrics (see ``evaluation_metrics``) by model name, in the
            order of the columns. At least one.
    """
    models = list(dict.fromkeys(name for each in results.values() for name in each))
    counts = {name: next(iter(each.values()))["num_prompts"] for name, each in results.items()}
    is_one = len(results) == 1
    title = f"{sum(counts.values())} held-out prompts, 95 % intervals"
    table = Table(title=title if is_one else "held-out prompts, 95 % intervals")
    table.add_column("", no_wrap=True)
    for name in models:
        table.add_column(name, justify="right", no_wrap=True)
    for name, metrics in results.items():
        if not is_one:
            table.add_row(Text(f"{name} ({counts[name]})", style="bold"))
        _add_rows(table, [metrics.get(model) for model in models])
    return table


def comparison_table(comparison: Mapping[str, Any], *, name: str) -> RenderableType:
    """How two models differ on the prompts of one task or benchmark.

    Args:
        comparison: See :func:`drift_ray.evaluation.comparison.compare` and, for two runs,
            :func:`drift_ray.evaluation.results.compare_models`.
        name: Of the task or benchmark.
    """
    models = f"{comparison['candidate']} - {comparison['baseline']}"
    table = Table(title=f"{models} on {comparison['num_prompts']} prompts of {name}")
    table.add_column("", no_wrap=True)
    for header in ("difference", "p", "won", "lost"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in comparison["success_at"]:
        limits = f"[{row['low']:+.3f}, {row['high']:+.3f}]"
        table.add_row(
            f"success@{row['k']}",
            Text(f"{row['difference']:+.3f}  {limits}"),
            "<0.0001" if row["p_value"] < 1e-4 else f"{row['p_value']:.4f}",
            f"{row['num_won']:,}",
            f"{row['num_lost']:,}",
        )
    last = comparison["success_at"][-1]
    lines = [f"95 % intervals paired by prompt; p: {comparison['test']} test"]
    if comparison["num_prompts_missing"]:
        lines.append(f"{comparison['num_prompts_missing']:,} prompts missing: all of them failed")
    lines += [
        f"not only the models differ: {setting} is {values[0]!r} for {comparison['baseline']}, "
        f"{values[1]!r} for {comparison['candidate']}"
        for setting, values in comparison.get("different_settings", {}).items()
    ]
    lines += [
        f"{kind} at success@{last['k']}: {_ids(last[kind])}"
        for kind in ("won", "lost")
        if last[kind]
    ]
    return Group(table, *(Text(line) for line in lines))


def _add_rows(table: Table, models: Sequence[Metrics | None]) -> None:
    for index in range(max(each["max_turns"] for each in models if each)):
        rates = [each["success_at"][index : index + 1] if each else [] for each in models]
        cells = (_interval(rate[0], "estimate") if rate else Text("-") for rate in rates)
        table.add_row(f"success@{index + 1}", *cells)
    table.add_section()
    for label, key in (("repeated answers", "repeated_answers"), ("no answer", "format_failures")):
        table.add_row(label, *(_interval(each[key], "rate") if each else "-" for each in models))
    table.add_row("tokens per solved", *(_tokens(each) if each else "-" for each in models))
    if any(each["missing"]["num_missing"] for each in models if each):
        table.add_row("missing", *(_missing(each["missing"]) if each else "-" for each in models))
    table.add_section()


def _interval(row: Mapping[str, Any], key: str) -> Text:
    if row[key] is None:
        return Text("-")
    return Text(f"{row[key]:.3f}  [{row['low']:.3f}, {row['high']:.3f}]")


def _tokens(metrics: Metrics) -> Text:
    tokens = metrics["tokens_per_solved"]
    if tokens["estimate"] is None:
        return Text("-")
    if tokens["low"] is None:
        return Text(_digits(tokens["estimate"]))
    limits = f"[{_digits(tokens['low'])}, {_digits(tokens['high'])}]"
    return Text(f"{_digits(tokens['estimate'])}  {limits}")


def _digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}"


def _missing(missing: Mapping[str, Any]) -> str:
    return f"{missing['num_missing']:,} of {missing['num_expected']:,}"


def _ids(ids: Sequence[str]) -> str:
    shown = [each if len(each) <= _MAX_ID_LENGTH else f"{each[:_MAX_ID_LENGTH]}…" for each in ids]
    return ", ".join(shown[:_NUM_IDS]) + (", …" if len(ids) > _NUM_IDS else "")
