"""The rollout stage: all groups of the training prompts, sampled once from the frozen reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from drift_ray.config import RunConfig
from drift_ray.lineage import Lineage
from drift_ray.rollout.monitor import Totals
from drift_ray.rollout.pool import ReplicaPool
from drift_ray.rollout.sampling import PartPlan, sample_missing
from drift_ray.rollout.work import Play, PolicyRef
from drift_ray.store import ROLLOUTS, RunStore
from drift_ray.types import Prompt


def plan(
    config: RunConfig,
    lineage: Lineage,
    prompts: Iterable[Prompt],
    *,
    policy: PolicyRef | None = None,
    subrun: str = "",
) -> PartPlan:
    """All parts of the stage, whether done or not.

    Args:
        config: The run.
        lineage: Names the trajectories and the reference policy.
        prompts: To sample from.
        policy: Who samples; None is the configured reference policy.
        subrun: See :class:`drift_ray.rollout.work.Play`.
    """
    return PartPlan(
        prompts,
        folder=ROLLOUTS,
        digest=lineage.rollouts,
        prompts_per_part=config.rollout.prompts_per_part,
        play=Play(
            group_size=config.rollout.group_size,
            policy=policy or PolicyRef(digest=lineage.reference),
            environment=config.task.environment,
            grader=config.task.grader,
            sampling=config.rollout.sampling,
            max_attempts=config.rollout.max_attempts,
            seed=config.seed,
            subrun=subrun,
        ),
    )


def run(
    store: RunStore,
    pool: ReplicaPool,
    config: RunConfig,
    parts: PartPlan,
    *,
    round_of: RunStore | None = None,
    meanwhile: Callable[[], object] = lambda: None,
) -> Totals:
    """Sample the parts that are missing; returns what was sampled now.

    Args:
        store: The run directory.
        pool: Who samples.
        config: The run.
        parts: What :func:`plan` gave.
        round_of: The run of which this one is a round, if it is one.
        meanwhile: Called now and then; what it raises ends the sampling.

    Raises:
        DataError: A committed part is truncated or foreign.
        StageError: Replicas died again and again, or too many trajectories failed.
    """
    return sample_missing(
        store,
        pool,
        parts,
        stage="rollout",
        max_failed_frac=config.rollout.max_failed_frac,
        round_of=round_of,
        meanwhile=meanwhile,
    )
