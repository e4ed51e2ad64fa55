"""What is sampled from the reference policy."""

from __future__ import annotations

from drift_ray.config.section import (
    Fraction,
    NonNegativeFloat,
    PositiveFraction,
    PositiveInt,
    Section,
)


class SamplingConfig(Section):
    """How the policy samples one turn."""

    temperature: NonNegativeFloat = 1.0
    """0 is greedy."""
    top_p: PositiveFraction = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    max_tokens: PositiveInt = 512
    """New tokens a turn."""
    max_tokens_per_traj: PositiveInt | None = None
    """New tokens over all turns of a trajectory; no limit when omitted."""


class RolloutConfig(Section):
    """How many trajectories are drawn from π_ref, and how."""

    group_size: PositiveInt = 16
    """Trajectories a prompt."""
    prompts_per_part: PositiveInt = 32
    """Groups in one Parquet part: the unit of work, of commit and of resume."""
    sampling: SamplingConfig = SamplingConfig()
    max_attempts: PositiveInt = 2
    """How often a trajectory is tried before it counts as failed."""
    max_failed_frac: Fraction = 0.05
    """Share of failed trajectories past which the stage stops."""
