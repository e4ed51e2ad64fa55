"""How trajectories become importance weights, and when those are good enough."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from drift_ray.config.section import FOLDER_NAME, Fraction, NonNegativeFloat, PositiveFloat, Section


class BetaTarget(Section):
    """β by what it does: the β at which the weights are spread as wanted."""

    ess_frac: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Effective sample size over group size, (Σw)²/(GΣw²)."""
    kl: PositiveFloat | None = None
    """KL(π*‖π_ref) in nats; below the logarithm of the group size."""
    per: Literal["run", "group"] = "run"
    """One β, at which the mean over groups is met, or a β for every group."""

    @model_validator(mode="after")
    def _one_target(self) -> BetaTarget:
        if (self.ess_frac is None) == (self.kl is None):
            raise ValueError("name one of ess_frac and kl")
        return self

    @property
    def wanted(self) -> tuple[Literal["ess_frac", "kl"], float]:
        """Which of the two, and its value."""
        if self.ess_frac is not None:
            return "ess_frac", self.ess_frac
        return "kl", self.kl or 0.0


def _beta_kind(value: Any) -> str:
    return "target" if isinstance(value, dict | BetaTarget) else "number"


class GateConfig(Section):
    """Conditions for going on to the training; those left out are not asked for."""

    min_ess_frac: Fraction | None = None
    """Mean effective sample size over group size."""
    min_effective_trajectories: PositiveFloat | None = None
    """Effective sample size of the whole run."""
    max_largest_share: Fraction | None = None
    """Mean over groups of the largest trajectory's share of the group's weight."""
    max_all_failed_frac: Fraction | None = None
    """Share of the groups in which nothing succeeded."""
    max_truncated_frac: Fraction | None = None
    """Share of the trajectories with a turn that was cut off."""
    max_format_failed_frac: Fraction | None = None
    """Share of the trajectories with a turn that held no answer."""


class WeightingConfig(Section):
    """Returns and importance weights: w = exp(R/β) / mean exp(R/β) over the group."""

    method: str = "drift"
    """``drift``, ``uniform``, ``success_only``, ``single_turn`` (turn 1 alone counts),
    ``group_advantage`` (signed), or a function of your own as ``package.module:function``."""
    name: str = Field(
        default_factory=lambda data: data.get("method", "drift").rpartition(":")[2],
        pattern=FOLDER_NAME,
        validate_default=True,
    )
    """Folder under ``weights/``; the method's name when omitted."""
    verdicts: Annotated[str, Field(pattern=FOLDER_NAME)] | None = None
    """Folder under ``verdicts/``: go by what ``drift-ray rescore`` found, not by the verdicts that
    were recorded when the trajectories were sampled."""
    gamma: Fraction = 0.9
    """Discount per turn."""
    beta: Annotated[
        Annotated[PositiveFloat, Tag("number")] | Annotated[BetaTarget, Tag("target")],
        Discriminator(_beta_kind),
    ] = 0.1
    """Temperature of the KL-regularised optimum; smaller follows the return more closely. A number,
    or what it should amount to: ``{ess_frac: 0.4}`` or ``{kl: 0.5}``."""
    repetition_penalty: NonNegativeFloat = 0.5
    """λ of the penalty λ·(1 - distinct/total) on repeated answers."""
    all_failed: Literal["keep", "drop", "scale"] = "keep"
    """Groups without any success: keep their weights, give them importance weight 0, or multiply
    them by ``all_failed_scale``."""
    all_failed_scale: Fraction = 0.1
    """For ``all_failed: scale``."""
    clip: PositiveFloat | None = None
    """Greatest importance weight; larger ones are cut down to it."""
    min_importance_weight: NonNegativeFloat = 0.0
    """Smaller importance weights become 0, which spares the training those trajectories."""
    gate: GateConfig = GateConfig()

    @model_validator(mode="after")
    def _limits_leave_something(self) -> WeightingConfig:
        if self.clip is not None and self.clip < self.min_importance_weight:
            raise ValueError("clip is below min_importance_weight: no weight would be left")
        return self
