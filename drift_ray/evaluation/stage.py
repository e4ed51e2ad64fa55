"""The evaluation stage: success within k turns on held-out prompts, by the rollout code itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from drift_ray.config import RunConfig
from drift_ray.evaluation.metrics import evaluation_metrics
from drift_ray.lineage import Lineage, digest
from drift_ray.rollout.pool import ReplicaPool
from drift_ray.rollout.sampling import PartPlan, sample_missing
from drift_ray.rollout.work import Play, PolicyRef
from drift_ray.schema import FAILURE_SCHEMA, TRAJECTORY_SCHEMA
from drift_ray.store import EVALUATION, RunStore
from drift_ray.types import Prompt

_METRICS_VERSION = 2
"""Of the metrics file: an older one is made anew from the trajectories that are there."""
_COLUMNS = ["prompt_id", "first_success_turn", "num_turns", "turns"]


def metrics_name(name: str) -> str:
    """Name of a model's metrics file, written last."""
    return f"{EVALUATION}/{name}/metrics.json"


def plan(
    config: RunConfig,
    lineage: Lineage,
    prompts: Iterable[Prompt],
    *,
    name: str,
    policy: PolicyRef,
) -> PartPlan:
    """All parts of one model's evaluation, whether done or not."""
    return PartPlan(
        prompts,
        folder=f"{EVALUATION}/{name}",
        digest=lineage.evaluation(policy.digest),
        prompts_per_part=config.evaluation.prompts_per_part,
        play=Play(
            group_size=config.evaluation.num_samples,
            policy=policy,
            environment=config.task.environment,
            grader=config.task.grader,
            sampling=config.evaluation.sampling,
            max_attempts=config.rollout.max_attempts,
            seed=config.seed,
        ),
    )


def is_done(store: RunStore, lineage: Lineage, *, name: str, policy: PolicyRef) -> bool:
    """Whether metrics of exactly this model, prompts and settings are committed."""
    return store.has_digest(metrics_name(name), _digest(lineage, policy))


def run(
    store: RunStore,
    pool: ReplicaPool,
    config: RunConfig,
    lineage: Lineage,
    prompts: Iterable[Prompt],
    *,
    name: str,
    policy: PolicyRef,
) -> dict[str, Any]:
    """Evaluate one model; returns the metrics that are also committed.

    Raises:
        DataError: A committed part is truncated or foreign.
        StageError: Replicas died again and again, or too many trajectories failed.
    """
    parts = plan(config, lineage, prompts, name=name, policy=policy)
    sizes = {part.name: len(part.prompts) for part in parts}
    wanted, num_prompts = sizes.keys(), sum(sizes.values())
    # Metrics without these trajectories would be of other weights or settings, and trajectories of
    # those would mix into every reader's glob.
    store.remove(metrics_name(name))
    for failed, part in parts.failures(store).items():
        if part not in wanted:
            store.remove(failed)
    for part in store.parts(parts.folder):
        if part not in wanted:
            store.remove(part)
    sample_missing(
        store,
        pool,
        parts,
        stage=f"evaluate {name}",
        max_failed_frac=config.rollout.max_failed_frac,
    )
    table = pa.concat_tables(
        store.read_table(name, TRAJECTORY_SCHEMA, _COLUMNS) for name in sorted(wanted)
    )
    metrics = {
        "digest": _digest(lineage, policy),
        "model": name,
        "policy": policy.digest,
        **evaluation_metrics(
            table,
            max_turns=config.task.environment.max_turns,
            num_expected=num_prompts * config.evaluation.num_samples,
            failure_causes=_failure_causes(store, parts),
        ),
    }
    store.write_json(metrics_name(name), metrics)
    return metrics


def _digest(lineage: Lineage, policy: PolicyRef) -> str:
    return digest(lineage.evaluation(policy.digest), _METRICS_VERSION)


def _failure_causes(store: RunStore, parts: PartPlan) -> list[str]:
    causes: list[str] = []
    for name in parts.failures(store):
        causes += store.read_table(name, FAILURE_SCHEMA, ["cause"])["cause"].to_pylist()
    return causes
