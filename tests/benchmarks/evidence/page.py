"""Writes ``report.html``: the results as one page, which looks as the report of a run does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drift_ray.report.drawing import Chart
from drift_ray.report.facts import Rows, Tile, duration, percent
from drift_ray.report.render import templates
from tests.benchmarks.evidence.collect import MAX_TURNS, MODES, cpu_seconds
from tests.benchmarks.evidence.page_charts import charts
from tests.benchmarks.evidence.plan import DRIFT, FULL, LABELS, REFERENCE, TASKS, methods

Results = Mapping[str, Any]
_ON_POLICY, _SUCCESSES = "on_policy", "sft_successes"
_NONE = "–"


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table with its words."""

    title: str
    head: Sequence[str]
    rows: Rows
    note: str = ""
    kind: str = "numbers dense"
    """A class of the styles: right-aligned numbers, or text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """All of a task."""

    name: str
    label: str
    tiles: Sequence[Tile]
    charts: Sequence[Chart]
    tables: Sequence[Table]


def write_page(results: Results, file: Path) -> None:
    """Write the page of all tasks.

    Args:
        results: As ``results.json`` holds them.
        file: Where to.
    """
    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    page = (
        templates()
        .from_string(template)
        .render(
            sections=[section(name, task) for name, task in results["tasks"].items()],
            date=results["date"],
            commit=results["commit"],
            took=duration(results["duration_s"]),
        )
    )
    file.write_text(page, encoding="utf-8")


def section(name: str, task: Results) -> Section:
    """A task's results in words, rows and plots."""
    found = task["methods"]
    tables = [
        *(_claims(found) if DRIFT in found else []),
        *(_success(found, mode) for mode in MODES),
        _cost(found),
        _against_drift(found),
        *(_ablations(task["ablations"]) if len(task["ablations"]) > 1 else []),
        _settings(found),
    ]
    return Section(
        name=name,
        label={each.name: each.label for each in TASKS}.get(name, name),
        tiles=_tiles(found),
        charts=charts(name, found),
        tables=[table for table in tables if table.rows],
    )


def _tiles(found: Results) -> list[Tile]:
    if DRIFT not in found:
        return []
    tiles = [
        _rate_tile(found, other, k)
        for other, k in ((REFERENCE, MAX_TURNS), (_SUCCESSES, 1), (_ON_POLICY, MAX_TURNS))
        if other in found
    ]
    if _ON_POLICY in found:
        before, after = (cpu_seconds(found[each]["cost"]) for each in (_ON_POLICY, DRIFT))
        tiles.append(
            Tile(
                label=f"CPU seconds, {LABELS[_ON_POLICY]} → DRIFT",
                before=f"{before:,.0f}",
                after=f"{after:,.0f}",
                intervals="sampling and training, mean over seeds",
                difference=f"{after / before:.2f} × its cost" if before else "",
            )
        )
    return tiles


def _rate_tile(found: Results, other: str, k: int) -> Tile:
    rows = [found[each]["sampled"]["success_at"][k - 1] for each in (other, DRIFT)]
    within = "at the first turn" if k == 1 else f"within {k} turns"
    return Tile(
        label=f"solved {within}, {LABELS[other]} → DRIFT",
        before=percent(rows[0]["estimate"]),
        after=percent(rows[1]["estimate"]),
        intervals=" → ".join(map(_interval, rows)) + ", sampled",
        difference=_points(_turned(_gap(found[other], "sampled", k)), " points"),
    )


def _gap(method: Results, mode: str, k: int) -> Results | None:
    """Paired difference of a method from DRIFT."""
    for row in method.get("versus_drift", {}).get(mode, []):
        if row["k"] == k:
            return {"estimate": row["difference"], "low": row["low"], "high": row["high"]}
    return None


def _turned(gap: Results | None) -> Results | None:
    if gap is None:
        return None
    return {"estimate": -gap["estimate"], "low": -gap["high"], "high": -gap["low"]}


def _claims(found: Results) -> Iterable[Table]:
    rows: Rows = []
    drift = found[DRIFT]
    if _ON_POLICY in found:
        rival = found[_ON_POLICY]
        cells = []
        for mode in MODES:
            gap = _turned(_gap(rival, mode, MAX_TURNS))
            cells.append(_NONE if gap is None else f"{_not_below(gap)}: {_points(gap)}")
        rows.append((f"success@{MAX_TURNS} of DRIFT is not below that of on-policy RL", *cells))
        ratio = cpu_seconds(drift["cost"]) / (cpu_seconds(rival["cost"]) or 1.0)
        verdict = "holds" if ratio <= 1 / 5 else "does not hold"
        rows.append(("at a fifth of its CPU seconds or less", f"{verdict}: {ratio:.2f} ×", ""))
    if _SUCCESSES in found:
        cells = []
        for mode in MODES:
            gap = _turned(_gap(found[_SUCCESSES], mode, 1))
            cells.append(_NONE if gap is None else f"{_above(gap)}: {_points(gap)}")
        rows.append(("success@1 of DRIFT is above that of SFT on successes", *cells))
    note = (
        "Paired differences with 95 % intervals. Not below: the interval reaches zero. "
        "Not decided: it holds zero."
    )
    return [Table(title="What was claimed", head=("", *MODES), rows=rows, note=note, kind="words")]


def _not_below(gap: Results) -> str:
    return "does not hold" if gap["high"] < 0 else "holds"


def _above(gap: Results) -> str:
    if gap["low"] > 0:
        return "holds"
    return "does not hold" if gap["high"] < 0 else "not decided"


def _success(found: Results, mode: str) -> Table:
    ks = range(1, MAX_TURNS + 1)
    return Table(
        title=f"Solved within k turns, {mode}, in %",
        head=("", *(f"success@{k}" for k in ks), f"success@{MAX_TURNS} by seed"),
        rows=[
            (_label(name), *map(_rate, rates := method[mode]["success_at"]), _spread(rates[-1]))
            for name, method in found.items()
        ],
    )


def _cost(found: Results) -> Table:
    head = (
        *("", "repeats greedy", "repeats sampled", "KL, nats", "trajectories", "tokens"),
        *("CPU s sampling", "CPU s training", "CPU s", "wall s"),
    )
    rows: Rows = []
    for name, method in found.items():
        cost, kl = method["cost"], method["kl"]
        rows.append(
            (
                _label(name),
                *(percent(method[mode]["repeated_answers"]) for mode in MODES),
                f"{max(kl['mean'], 0.0):.2f} ({max(kl['least'], 0.0):.2f} to {kl['most']:.2f})",
                f"{cost['num_trajectories']:,.0f}",
                f"{cost['num_sampled_tokens']:,.0f}",
                f"{cost['sampling_cpu_s']:,.1f}",
                f"{cost['training_cpu_s']:,.1f}",
                f"{cpu_seconds(cost):,.1f}",
                f"{cost['sampling_s'] + cost['training_s']:,.1f}",
            )
        )
    note = (
        "Repeats: answers given before in the same trajectory, of those that could be. KL: of "
        "whole trajectories from the reference policy, by the policy's own samples, with the "
        "least and the most of a seed. Costs are means over seeds; wall time is that of sampling "
        "and training."
    )
    return Table(title="What it costs, and how far it goes", head=head, rows=rows, note=note)


def _against_drift(found: Results) -> Table:
    ks = (1, MAX_TURNS)
    return Table(
        title="Against DRIFT, in points",
        head=("", *(f"success@{k} {mode}" for mode in MODES for k in ks), "cost to reach it"),
        rows=[
            (
                _label(name),
                *(_points(_gap(method, mode, k)) for mode in MODES for k in ks),
                _reach(method.get("cost_to_reach_drift", [])),
            )
            for name, method in found.items()
            if name != DRIFT and DRIFT in found
        ],
        note="Paired by prompt and seed. Cost to reach it: CPU seconds up to the first evaluated "
        f"policy with DRIFT's sampled success@{MAX_TURNS} of the same seed, and over DRIFT's own.",
    )


def _ablations(variants: Results) -> Iterable[Table]:
    rows: Rows = []
    for name, method in variants.items():
        gaps = [None if name == "best" else _gap(method, mode, MAX_TURNS) for mode in MODES]
        rows.append(
            (
                "as tuned" if name == "best" else name.replace("_", " "),
                *(_rate(method[mode]["success_at"][0]) for mode in MODES),
                *(_rate(method[mode]["success_at"][-1]) for mode in MODES),
                *map(_points, gaps),
                f"{method['kl']['mean']:.2f}",
                f"{cpu_seconds(method['cost']):,.1f}",
            )
        )
    head = (
        *("", *(f"success@{k} {mode}" for k in (1, MAX_TURNS) for mode in MODES)),
        *(f"difference @{MAX_TURNS} {mode}" for mode in MODES),
        *("KL, nats", "CPU s"),
    )
    note = "Rates in %. Differences are paired, from DRIFT as it was tuned, in points."
    return [Table(title="DRIFT with one setting changed", head=head, rows=rows, note=note)]


def _settings(found: Results) -> Table:
    trials = {each.name: each.trials for each in methods(FULL)}
    rows: Rows = [
        (
            _label(name),
            _told(method["settings"]),
            str(len(method["seeds"])),
            "; ".join(map(_told, trials.get(name, ()))),
        )
        for name, method in found.items()
        if name != REFERENCE
    ]
    return Table(
        title="What was tuned",
        head=("", "settings found", "seeds", "tried"),
        rows=rows,
        note="On validation prompts with a seed of its own, as many trials for each method, by the "
        f"mean of greedy and sampled success@{MAX_TURNS}, among equals of success@1. Test prompts "
        "were not looked at before.",
        kind="words",
    )


def _told(settings: Results) -> str:
    return ", ".join(
        f"{name.rpartition('.')[2]} {value:g}" if isinstance(value, float) else
        f"{name.rpartition('.')[2]} {value}"
        for name, value in settings.items()
    )  # fmt: skip


def _label(name: str) -> str:
    return LABELS.get(name, name)


def _interval(row: Results) -> str:
    return f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def _rate(row: Results) -> str:
    return f"{100 * row['estimate']:.1f} {_interval(row)}"


def _spread(row: Results) -> str:
    return f"{100 * row['least']:.1f} to {100 * row['most']:.1f}"


def _points(gap: Results | None, unit: str = "") -> str:
    if gap is None:
        return _NONE
    # Plus 0.0, so that there is no -0.0.
    points = [round(100 * gap[each], 1) + 0.0 for each in ("estimate", "low", "high")]
    return "{:+.1f}{} [{:+.1f}, {:+.1f}]".format(points[0], unit, *points[1:]).replace("-", "−")


def _reach(seeds: Sequence[Results]) -> str:
    reached = [seed for seed in seeds if seed["cpu_s"] is not None]
    if not reached:
        return "not reached" if seeds else _NONE
    text = _from_to([seed["cpu_s"] for seed in reached], "s")
    ratios = [seed["ratio"] for seed in reached if seed["ratio"] is not None]
    times = f", {_from_to(ratios, '×')}" if ratios else ""
    return f"{text}{times} ({len(reached)} of {len(seeds)} seeds)"


def _from_to(values: Sequence[float], unit: str) -> str:
    low, high = (f"{each:,.1f}" for each in (min(values), max(values)))
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"
