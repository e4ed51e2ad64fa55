"""What a summary means in words, and the gate that keeps bad weights from being trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from drift_ray.config import BetaTarget, GateConfig, WeightingConfig
from drift_ray.errors import StageError

Summary = dict[str, Any]

# Where a figure is worth a sentence. Rules of thumb, for people: nothing is decided by them.
_FEW_ESS_FRAC = 0.15
_NO_CONTRAST_ESS_FRAC = 0.95
_MANY_FAILED_FRAC = 0.3
_MANY_SOLVED_FRAC = 0.5
_HARMFUL_FRAC = 0.1


def advice(summary: Summary, config: WeightingConfig) -> list[str]:
    """What stands out and which setting changes it; empty if nothing does.

    Args:
        summary: See :func:`drift_ray.weighting.diagnostics.summarize`.
        config: What the weights were made with.
    """
    if not summary["num_groups"]:
        return []
    return [
        sentence
        for rule in (_beta_advice, _group_advice, _text_advice, _limit_advice)
        for sentence in rule(summary, config)
    ]


def _beta_advice(summary: Summary, config: WeightingConfig) -> list[str]:
    found: list[str] = []
    beta, ess_frac = summary["beta"], summary["ess_frac"]["mean"]
    if beta is None or ess_frac is None:
        return found
    other = summary["what_if"]
    if ess_frac < _FEW_ESS_FRAC:
        found.append(
            f"A group of {_group_size(summary):.0f} counts like {summary['ess']['mean']:.1f}: few "
            f"trajectories have nearly all the weight. Raise weighting.beta (at "
            f"{other['double']['beta']:g}: {other['double']['ess_frac']:.0%} of a group instead of "
            f"{ess_frac:.0%}), or draw more trajectories a prompt."
        )
    if ess_frac > _NO_CONTRAST_ESS_FRAC and summary["all_solved_frac"] < 1:
        found.append(
            f"The weights hardly tell trajectories apart (effective sample size {ess_frac:.0%} of "
            f"a group). Lower weighting.beta (at {other['half']['beta']:g}: "
            f"{other['half']['ess_frac']:.0%}), or choose prompts that are solved sometimes."
        )
    if isinstance(config.beta, BetaTarget) and beta["at_bound"]:
        found.append(
            f"In {beta['at_bound']:.0%} of the groups no β gives what weighting.beta asks for: "
            "their returns are all alike, or several share the best. Those groups have the β of "
            "the range's end; ask for a higher ess_frac or a lower kl."
        )
    return found


def _group_advice(summary: Summary, config: WeightingConfig) -> list[str]:
    found = []
    failed, solved = summary["all_failed_frac"], summary["all_solved_frac"]
    if failed > _MANY_FAILED_FRAC:
        kept = config.all_failed == "keep" and not summary["num_weightless_groups"]
        found.append(
            f"Nobody solved {failed:.0%} of the prompts"
            + (", and their wrong answers keep full weight" if kept else "")
            + ". Set weighting.all_failed=drop or scale, draw more trajectories for these prompts, "
            "allow more turns, or check the grader."
        )
    if solved > _MANY_SOLVED_FRAC:
        found.append(
            f"Every trajectory of {solved:.0%} of the prompts succeeds: they teach only to be "
            "faster. Choose harder prompts."
        )
    return found


def _text_advice(summary: Summary, config: WeightingConfig) -> list[str]:
    found = []
    truncated = summary["truncated"]["trajectory_frac"]
    if truncated > _HARMFUL_FRAC:
        found.append(
            f"{truncated:.0%} of the trajectories have a turn that was cut off, and "
            f"{summary['truncated']['weight_frac']:.0%} of the weight teaches to be. Raise "
            "rollout.sampling.max_tokens."
        )
    unread = summary["format_failed"]["trajectory_frac"]
    if unread > _HARMFUL_FRAC:
        found.append(
            f"{unread:.0%} of the trajectories have a turn without a readable answer (of the "
            f"weight: {summary['format_failed']['weight_frac']:.0%}). Say in "
            "task.environment.system_prompt which form is wanted, or lower "
            "task.environment.format_penalty."
        )
    return found


def _limit_advice(summary: Summary, config: WeightingConfig) -> list[str]:
    return [
        f"weighting.{name} took {share:.0%} of the weight: what is learned is no longer the "
        "optimum for this β. Loosen it, or raise weighting.beta."
        for name, share in summary["removed_mass_frac"].items()
        if name != "all_failed" and share > _HARMFUL_FRAC
    ]


def _group_size(summary: Summary) -> float:
    return float(summary["num_trajectories"] / summary["num_groups"])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Condition:
    figure: str
    value: Callable[[Summary], float | None]
    knob: str


_CONDITIONS = {
    "min_ess_frac": _Condition(
        figure="the mean effective sample size over group size",
        value=lambda s: s["ess_frac"]["mean"],
        knob="raise weighting.beta or rollout.group_size",
    ),
    "min_effective_trajectories": _Condition(
        figure="the effective number of trajectories",
        value=lambda s: s["effective_num_trajectories"],
        knob="raise weighting.beta, rollout.group_size or task.train.num_prompts",
    ),
    "max_largest_share": _Condition(
        figure="the mean share of a group's largest weight",
        value=lambda s: s["largest_share"]["mean"],
        knob="raise weighting.beta or rollout.group_size",
    ),
    "max_all_failed_frac": _Condition(
        figure="the share of prompts nobody solved",
        value=lambda s: s["all_failed_frac"],
        knob="draw more trajectories a prompt, choose easier prompts, or check task.grader",
    ),
    "max_truncated_frac": _Condition(
        figure="the share of trajectories with a turn that was cut off",
        value=lambda s: s["truncated"]["trajectory_frac"],
        knob="raise rollout.sampling.max_tokens",
    ),
    "max_format_failed_frac": _Condition(
        figure="the share of trajectories with a turn without an answer",
        value=lambda s: s["format_failed"]["trajectory_frac"],
        knob="say in task.environment.system_prompt which form is wanted",
    ),
}


def check_gate(summary: Summary, gate: GateConfig, where: str) -> None:
    """Refuse to go on with weights that miss a condition.

    A figure that does not exist, as the ESS when no group carries weight, misses it.

    Args:
        summary: See :func:`drift_ray.weighting.diagnostics.summarize`.
        gate: The conditions.
        where: Where the summary can be read.

    Raises:
        StageError: Names every figure that misses its bound, and the settings that move it.
    """
    missed = []
    for name, condition in _CONDITIONS.items():
        bound = getattr(gate, name)
        if bound is None:
            continue
        value = condition.value(summary)
        is_least = name.startswith("min_")
        if value is None or (value < bound if is_least else value > bound):
            found = "unknown: no group carries weight" if value is None else f"{value:.4g}"
            missed.append(
                f"  {condition.figure} is {found}, but weighting.gate.{name} is {bound:g}: "
                f"{condition.knob}."
            )
    if missed:
        raise StageError(
            "The weights are committed, but not good enough to go on:\n" + "\n".join(missed),
            f"See {where}. Change what is named, or the gate, and run the same command again.",
        )
