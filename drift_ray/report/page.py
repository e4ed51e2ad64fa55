"""What the page says: results of a run put into words, rows and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from drift_ray.report import charts
from drift_ray.report.charts import Floats
from drift_ray.report.drawing import Chart
from drift_ray.report.facts import (
    COST_HEAD,
    RATE_HEAD,
    Headline,
    Rows,
    costs,
    headline,
    lineage,
    rates,
    training_facts,
    weight_facts,
)
from drift_ray.report.results import Failures, Figures, RunResults
from drift_ray.report.selection import Shown


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Everything that the template shows, in its order; plain text but for the plots."""

    title: str
    subtitle: str
    warnings: Sequence[str]
    headlines: Sequence[Headline]
    success_charts: Sequence[Chart]
    rate_head: Sequence[str]
    rate_tables: Sequence[tuple[str, Rows]]
    weight_facts: Rows
    weight_charts: Sequence[Chart]
    advice: Sequence[str]
    round_charts: Sequence[Chart]
    training_facts: Rows
    training_charts: Sequence[Chart]
    cost_head: Sequence[str]
    cost_rows: Rows
    failures: Sequence[Failures]
    shown: Sequence[str]
    lineage_facts: Rows
    fingerprint: Rows
    configuration: str


def make_page(results: RunResults, weights: Floats | None, shown: Sequence[Shown]) -> Page:
    """Put a run's results into words and plots.

    Args:
        results: Of the run.
        weights: All importance weights, shape ``[N]``; None where it was not weighed.
        shown: What the browser of trajectories holds.
    """
    config = results.config
    return Page(
        title=results.url.rstrip("/").rsplit("/", 1)[-1] or results.url,
        subtitle=f"{config.task.name}, {config.model.path.rsplit('/', 1)[-1]}, up to "
        f"{config.task.environment.max_turns} turns",
        warnings=results.stale,
        headlines=[
            headline(name, models, results.comparisons.get(name))
            for name, models in results.evaluations.items()
        ],
        success_charts=_success_charts(results.evaluations),
        rate_head=RATE_HEAD,
        rate_tables=[(name, rates(models)) for name, models in results.evaluations.items()],
        weight_facts=weight_facts(results.weights),
        weight_charts=_weight_charts(results.weights, weights),
        advice=results.weights["advice"] if results.weights else [],
        round_charts=charts.round_charts(results.rounds) if results.rounds else [],
        training_facts=training_facts(results.training, results.model),
        training_charts=charts.training_charts(results.training) if results.training else [],
        cost_head=COST_HEAD,
        cost_rows=costs(results),
        failures=results.failures,
        shown=[sentence for each in shown if (sentence := _cut(each))],
        lineage_facts=lineage(results),
        fingerprint=[(name, str(value)) for name, value in results.run["fingerprint"].items()],
        configuration=yaml.safe_dump(results.run["config"], sort_keys=False, allow_unicode=True),
    )


def _success_charts(evaluations: Mapping[str, Mapping[str, Figures]]) -> list[Chart]:
    found = []
    for name, models in evaluations.items():
        suffix = f", {name}" if len(evaluations) > 1 else ""
        found.append(charts.success_chart(f"Solved within k turns{suffix}", models))
        if max(each["max_turns"] for each in models.values()) > 1:
            title = f"Corrected at a turn, of those wrong before{suffix}"
            found.append(charts.rate_chart(title, models, "correction_rate", "rate"))
    return found


def _weight_charts(weights: Figures | None, values: Floats | None) -> list[Chart]:
    if weights is None:
        return []
    spread = [] if values is None or not len(values) else [charts.weight_chart(values)]
    return [charts.mass_chart(weights), *spread, charts.ess_chart(weights)]


def _cut(shown: Shown) -> str:
    if shown.num_shown == shown.num_all:
        return ""
    name = shown.name.replace("/", ", ")
    return (
        f"Of {name}, {shown.num_shown:,} of {shown.num_all:,} trajectories are in this page: whole "
        "prompts, chosen by a hash, so that it stays small. `drift-ray inspect` shows all of them."
    )
