"""Results of a run in words and numbers, as a person reads them: on the page, in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drift_ray.evaluation.results import REFERENCE, TRAINED
from drift_ray.report.results import Figures, RunResults

Rows = list[tuple[str, ...]]
RATE_HEAD = ("", REFERENCE, TRAINED)
COST_HEAD = ("stage", "trajectories", "turns", "tokens", "solved", "time", "tokens/s")
_NONE = "–"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """One figure before and after."""

    label: str
    before: str
    after: str
    intervals: str
    difference: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """What the training did on one task or benchmark."""

    name: str
    tiles: Sequence[Tile]
    note: str


def headline(name: str, models: Mapping[str, Figures], comparison: Figures | None) -> Headline:
    """Success within all turns, at the first one, and tokens per solved trajectory.

    Args:
        name: Of the task or benchmark.
        models: Metrics by model.
        comparison: Of the two models; None where only one was evaluated.
    """
    metrics = list(models.values())
    last = min(each["max_turns"] for each in metrics)
    ks = [last, 1] if last > 1 else [1]
    counts = f"{metrics[0]['num_prompts']:,} held-out prompts"
    samples = metrics[0]["settings"].get("num_samples", 1)
    each = "" if samples == 1 else f", {samples} samples each"
    paired = f", differences paired by prompt ({comparison['test']} test)" if comparison else ""
    missing = sum(m["missing"]["num_missing"] for m in metrics)
    lost = (
        f" {missing:,} trajectories are missing: they failed, and count in no rate."
        if missing
        else ""
    )
    return Headline(
        name=name,
        tiles=[*(_success_tile(k, models, comparison) for k in ks), _token_tile(models)],
        note=f"{counts}{each}. 95 % intervals clustered by prompt{paired}.{lost}",
    )


def _success_tile(k: int, models: Mapping[str, Figures], comparison: Figures | None) -> Tile:
    found = {name: each["success_at"][k - 1] for name, each in models.items()}
    difference = ""
    if comparison:
        row = comparison["success_at"][k - 1]
        difference = (
            f"{100 * row['difference']:+.1f} points [{100 * row['low']:+.1f}, "
            f"{100 * row['high']:+.1f}], {_p_value(row['p_value'])}"
        ).replace("-", "−")
    return Tile(
        label="solved at the first turn" if k == 1 else f"solved within {k} turns",
        **_before_after({name: percent(row["estimate"]) for name, row in found.items()}),
        intervals=" → ".join(_interval(row) for row in found.values()),
        difference=difference,
    )


def _token_tile(models: Mapping[str, Figures]) -> Tile:
    found = {name: each["tokens_per_solved"] for name, each in models.items()}
    return Tile(
        label="sampled tokens per solved trajectory",
        **_before_after({name: _tokens(row["estimate"]) for name, row in found.items()}),
        intervals=" → ".join(
            _NONE if row["low"] is None else f"[{_tokens(row['low'])}, {_tokens(row['high'])}]"
            for row in found.values()
        ),
        difference="",
    )


def _before_after(values: Mapping[str, str]) -> dict[str, str]:
    *before, after = values.values()
    return {"before": before[0] if before else "", "after": after}


def rates(models: Mapping[str, Figures]) -> Rows:
    """Rates of each model that explain its success: one row a rate, see :data:`RATE_HEAD`."""

    def row(label: str, value: Any) -> tuple[str, ...]:
        return label, *(value(models[m]) if m in models else _NONE for m in (REFERENCE, TRAINED))

    turns = max(each["max_turns"] for each in models.values())

    def at(rows: str, index: int, rate: str, of: str) -> Any:
        def cell(metrics: Figures) -> str:
            found = metrics[rows][index : index + 1]
            if not found or found[0][rate] is None:
                return _NONE
            return f"{_rate(found[0], rate)} of {found[0][of]:,}"

        return cell

    return [
        *(row(f"correct at turn {k}", at("per_turn", k - 1, "accuracy", "num_attempts"))
          for k in range(1, turns + 1)),
        row("repeated answers", lambda m: _rate(m["repeated_answers"], "rate")),
        row("no answer", lambda m: _rate(m["format_failures"], "rate")),
    ]  # fmt: skip


def weight_facts(weights: Figures | None) -> Rows:
    """Names and values of what a weighting amounts to; empty without one."""
    if weights is None:
        return []
    returns, share = weights["expected_return"], weights["largest_share"]
    return [
        ("weighting", weights["parameters"]["method"]),
        ("β", _beta(weights["beta"])),
        ("γ", f"{weights['parameters']['gamma']:g}"),
        ("trajectories", f"{weights['num_trajectories']:,} of {weights['num_groups']:,} prompts"),
        ("effective trajectories", f"{weights['effective_num_trajectories']:,.0f}"),
        ("effective share of a group", percent(weights["ess_frac"]["mean"])),
        ("largest share in a group", percent(share["mean"])),
        ("KL(π*‖π_ref)", _number(weights["kl_estimate"], " nats")),
        (
            "expected return",
            f"{_number(returns['reference'])} → {_number(returns['weighted'])} under the weights",
        ),
        (
            "prompts all failed / all solved",
            f"{percent(weights['all_failed_frac'])} / {percent(weights['all_solved_frac'])}",
        ),
    ]


def training_facts(steps: Sequence[Figures], model: Figures | None) -> Rows:
    """Names and values of what the steps of a training came to; empty without any."""
    if not steps:
        return []
    last, tenth = steps[-1], max(len(steps) // 10, 1)

    def mean(part: Sequence[Figures], name: str) -> str:
        return f"{sum(step[name] for step in part) / len(part):.3g}".replace("-", "−")

    peak = max((step["peak_memory_gib"] or 0.0 for step in steps), default=0.0)
    facts: Rows = [
        ("steps", f"{last['step'] + 1:,} of {last['num_steps']:,}"),
        (
            "weighted loss, first and last tenth",
            f"{mean(steps[:tenth], 'loss')} → {mean(steps[-tenth:], 'loss')}",
        ),
        ("KL(π_ref‖π_θ), last tenth", f"{mean(steps[-tenth:], 'kl_ref')} nats a token"),
        ("peak memory", f"{peak:.2f} GiB"),
    ]
    if model:
        facts.insert(1, ("trajectories", f"{model['num_samples']:,}"))
    if best := (model or {}).get("best_step"):
        facts.append(("exported", f"step {best:,}, the lowest held-out loss"))
    if mfu := [step["mfu"] for step in steps if step["mfu"]]:
        facts.append(("model FLOPs utilisation", percent(sum(mfu) / len(mfu))))
    return facts


def costs(results: RunResults) -> Rows:
    """One row a stage: see :data:`COST_HEAD`."""
    rows: Rows = [
        (
            each.stage,
            f"{each.num_trajectories:,}",
            f"{each.num_turns:,}",
            f"{each.num_sampled_tokens:,}",
            percent(each.num_solved / each.num_trajectories if each.num_trajectories else None),
            duration(each.elapsed_s),
            _NONE if each.tokens_per_s is None else f"{each.tokens_per_s:,.0f}",
        )
        for each in results.sampling
    ]
    if rounds := results.rounds:
        num, turns, tokens, seconds = (
            sum(each[name] for each in rounds)
            for name in ("num_trajectories", "num_turns", "num_sampled_tokens", "sampling_s")
        )
        rows.append(
            (f"sampling, {len(rounds):,} rounds", f"{num:,}", f"{turns:,}", f"{tokens:,}",
             _NONE, duration(seconds), f"{tokens / seconds:,.0f}" if seconds else _NONE)
        )  # fmt: skip
    if steps := results.training:
        seconds = sum(step["step_s"] for step in steps)
        tokens = sum(step["num_tokens"] for step in steps)
        samples = sum(step["num_samples"] for step in steps)
        rate = f"{tokens / seconds:,.0f}" if seconds else _NONE
        rows.append(
            (f"training, {len(steps):,} steps", f"{samples:,}", _NONE, f"{tokens:,}",
             _NONE, duration(seconds), rate)
        )  # fmt: skip
    return rows


def lineage(results: RunResults) -> Rows:
    """Names and values of what a run was made from."""
    config = results.config
    return [
        ("reference policy", config.model.path.rsplit("/", 1)[-1]),
        ("task", f"{config.task.name}, grader {config.task.grader}"),
        ("seed", str(config.seed)),
        *((f"digest of the {what}", figures["digest"])
          for what, figures in (("weights", results.weights), ("model", results.model)) if figures),
        *((name, version) for name, version in results.run.get("versions", {}).items()),
    ]  # fmt: skip


def percent(value: float | None) -> str:
    """A share, with one decimal."""
    return _NONE if value is None else f"{100 * value:.1f} %"


def duration(seconds: float | None) -> str:
    """Seconds in the units that a person would use."""
    if seconds is None:
        return _NONE
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _interval(row: Figures) -> str:
    return f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def _rate(row: Figures, rate: str) -> str:
    return _NONE if row[rate] is None else f"{percent(row[rate])} {_interval(row)}"


def _tokens(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _p_value(value: float) -> str:
    """It stays on one line, also in a narrow tile."""
    text = "p < 0.0001" if value < 1e-4 else f"p = {value:.4f}"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _number(value: float | None, unit: str = "") -> str:
    return _NONE if value is None else f"{value:.3f}{unit}"


def _beta(beta: Figures | None) -> str:
    if beta is None:
        return _NONE
    same = beta["min"] == beta["max"]
    return f"{beta['p50']:.4g}" if same else f"{beta['min']:.3g} … {beta['max']:.3g}"
