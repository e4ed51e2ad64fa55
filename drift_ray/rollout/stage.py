"""The rollout stage: all groups of the training prompts, sampled once from the frozen reference."""

from __future__ import annotations

from collections.abc import Sequence

from drift_ray.config import RunConfig
from drift_ray.lineage import Lineage
from drift_ray.rollout.pool import ReplicaPool
from drift_ray.rollout.sampling import Totals, plan_parts, sample_missing
from drift_ray.rollout.worker import PartJob, PolicyRef
from drift_ray.store import ROLLOUTS, RunStore
from drift_ray.types import Prompt


def plan(config: RunConfig, lineage: Lineage, prompts: Sequence[Prompt]) -> list[PartJob]:
    """All parts of the stage, whether done or not."""
    return plan_parts(
        prompts,
        folder=ROLLOUTS,
        digest=lineage.rollouts,
        prompts_per_part=config.rollout.prompts_per_part,
        group_size=config.rollout.group_size,
        policy=PolicyRef(digest=lineage.reference),
        task=config.task,
        sampling=config.rollout.sampling,
        max_attempts=config.rollout.max_attempts,
        seed=config.seed,
    )


def run(store: RunStore, pool: ReplicaPool, config: RunConfig, jobs: Sequence[PartJob]) -> Totals:
    """Sample the parts that are missing; returns what was sampled now.

    Raises:
        DataError: A committed part is truncated or foreign.
        StageError: A job failed for good, or too many trajectories did.
    """
    return sample_missing(
        store, pool, jobs, stage="rollout", max_failed_frac=config.rollout.max_failed_frac
    )
