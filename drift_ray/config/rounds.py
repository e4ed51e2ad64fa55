"""How often the trained policy becomes the one that samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from drift_ray.config.section import PositiveFraction, PositiveInt, Section


class RoundsConfig(Section):
    """Rounds of sampling, weighing and training; each one's policy samples the next one.

    One round is DRIFT. Many small ones with ``weighting.method: group_advantage`` are on-policy
    multi-turn RL with a group baseline. Each weighs against its own sampler: N rounds aim at
    π_ref·exp(N·R/β), those with N times the β at the target of one round.
    """

    num_rounds: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 1
    """With more than one, the replicas load every round's policy in place, and replicas and
    training workers stay up over all rounds: the cluster needs room for both."""
    prompts_per_round: PositiveInt | PositiveFraction = 1.0
    """A number of prompts, or a share of them (1.0: all). An epoch's permutation is cut into
    rounds; what is left over is for another epoch."""
    optimizer: Literal["carry", "reset"] = "carry"
    """Whether AdamW's moments and the schedule of the learning rate go on over all rounds, or
    begin anew with each."""
    keep_policies: PositiveInt = 2
    """Policies that stay, the newest ones: the last one in ``model/``, others in ``rounds/``.
    Trajectories all stay."""
