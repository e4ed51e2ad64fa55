"""The evaluation stage: success within k turns on held-out prompts, by the rollout code itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from drift_ray.config import RunConfig
from drift_ray.evaluation.comparison import compare
from drift_ray.evaluation.metrics import evaluation_metrics
from drift_ray.evaluation.results import (
    COMPARISON_FILE,
    Benchmark,
    evaluation_folder,
    metrics_name,
    read_outcomes,
)
from drift_ray.lineage import Lineage, digest
from drift_ray.rollout.pool import ReplicaPool
from drift_ray.rollout.sampling import PartPlan, sample_missing
from drift_ray.rollout.work import Play, PolicyRef
from drift_ray.schema import FAILURE_SCHEMA, TRAJECTORY_SCHEMA
from drift_ray.store import FAILURES, RunStore

_METRICS_VERSION = 2
"""Of the metrics file: an older one is made anew from the trajectories that are there."""
_COLUMNS = ["prompt_id", "trajectory_index", "first_success_turn", "num_turns", "turns"]


def plan(
    config: RunConfig,
    lineage: Lineage,
    benchmark: Benchmark,
    *,
    name: str,
    policy: PolicyRef,
) -> PartPlan:
    """All parts of one model's evaluation, whether done or not."""
    return PartPlan(
        benchmark.prompts,
        folder=evaluation_folder(name, benchmark.name),
        digest=lineage.evaluation(policy.digest, benchmark.name),
        prompts_per_part=config.evaluation.prompts_per_part,
        play=Play(
            group_size=config.evaluation.num_samples,
            policy=policy,
            environment=config.task.environment,
            grader=benchmark.grader,
            sampling=config.evaluation.sampling,
            max_attempts=config.rollout.max_attempts,
            seed=config.seed,
        ),
    )


def is_done(
    store: RunStore,
    lineage: Lineage,
    benchmark: str | None = None,
    *,
    name: str,
    policy: PolicyRef,
) -> bool:
    """Whether metrics of exactly this model, prompts and settings are committed."""
    file = metrics_name(evaluation_folder(name, benchmark))
    return store.has_digest(file, _digest(lineage, policy, benchmark))


def run(
    store: RunStore,
    pool: ReplicaPool,
    config: RunConfig,
    lineage: Lineage,
    benchmark: Benchmark,
    *,
    name: str,
    policy: PolicyRef,
) -> dict[str, Any]:
    """Evaluate one model; returns the metrics that are also committed.

    Raises:
        DataError: A committed part is truncated or foreign.
        StageError: Replicas died again and again, or too many trajectories failed.
    """
    parts = plan(config, lineage, benchmark, name=name, policy=policy)
    sizes = {part.name: len(part.prompts) for part in parts}
    wanted, num_prompts = sizes.keys(), sum(sizes.values())
    # Metrics without these trajectories would be of other weights or settings, and trajectories of
    # those would mix into every reader's glob.
    store.remove(COMPARISON_FILE)
    store.remove(metrics_name(parts.folder))
    there = parts.committed(store)
    for part in there - wanted:
        store.remove(part)
    failed = parts.failures(there & wanted)
    for file in store.parts(f"{parts.folder}/{FAILURES}"):
        if file not in failed:
            store.remove(file)
    sample_missing(
        store,
        pool,
        parts,
        stage=f"evaluate {name}" + (f" on {benchmark.name}" if benchmark.name else ""),
        max_failed_frac=config.rollout.max_failed_frac,
    )
    table = pa.concat_tables(
        store.read_table(name, TRAJECTORY_SCHEMA, _COLUMNS) for name in sorted(wanted)
    )
    metrics = {
        "digest": _digest(lineage, policy, benchmark.name),
        "model": name,
        "benchmark": benchmark.name,
        "policy": policy.digest,
        "settings": _settings(config, benchmark),
        **evaluation_metrics(
            table,
            max_turns=config.task.environment.max_turns,
            num_expected=num_prompts * config.evaluation.num_samples,
            failure_causes=_failure_causes(store, sorted(wanted)),
        ),
    }
    store.write_json(metrics_name(parts.folder), metrics)
    return metrics


def forget_failures(
    store: RunStore,
    config: RunConfig,
    lineage: Lineage,
    benchmark: Benchmark,
    *,
    name: str,
    policy: PolicyRef,
) -> int:
    """Delete the parts of one model's evaluation that have failed trajectories; returns how many.

    They are sampled again when the evaluation runs next.
    """
    parts = plan(config, lineage, benchmark, name=name, policy=policy)
    if parts.failures(parts.committed(store)):
        store.remove(metrics_name(parts.folder))
    return parts.forget_failures(store)


def compare_policies(
    store: RunStore,
    lineage: Lineage,
    benchmarks: Mapping[str, str | None],
    *,
    baseline: tuple[str, PolicyRef],
    candidate: tuple[str, PolicyRef],
) -> dict[str, Any]:
    """Compare two models on every benchmark that both are evaluated on; commit the result.

    Args:
        store: The run directory.
        lineage: Says which evaluations are up to date.
        benchmarks: Their names, by the names to show them by.
        baseline: Name and policy of a model,
        candidate: and of the one compared with it.

    Returns:
        :func:`drift_ray.evaluation.comparison.compare` of each benchmark that is done, by the name
        to show; what is committed already is not computed again.
    """
    models = (baseline, candidate)
    done = {
        shown: benchmark
        for shown, benchmark in benchmarks.items()
        if all(is_done(store, lineage, benchmark, name=n, policy=p) for n, p in models)
    }
    if not done:
        return {}
    made_of = digest(
        _METRICS_VERSION,
        *([shown, _digest(lineage, p, name)] for shown, name in done.items() for _, p in models),
    )
    if not store.has_digest(COMPARISON_FILE, made_of):
        found = {
            shown: compare(
                *(
                    read_outcomes(store, evaluation_folder(name, benchmark), name=name)
                    for name, _ in models
                )
            )
            for shown, benchmark in done.items()
        }
        store.write_json(COMPARISON_FILE, {"digest": made_of, "comparisons": found})
    comparisons: dict[str, Any] = store.read_json(COMPARISON_FILE)["comparisons"]
    return comparisons


def _digest(lineage: Lineage, policy: PolicyRef, benchmark: str | None) -> str:
    return digest(lineage.evaluation(policy.digest, benchmark), _METRICS_VERSION)


def _settings(config: RunConfig, benchmark: Benchmark) -> dict[str, Any]:
    """What a comparison with another run should have in common."""
    environment = config.task.environment.model_dump(mode="json")
    sampling = config.evaluation.sampling.model_dump(mode="json")
    return {
        "grader": benchmark.grader,
        "num_samples": config.evaluation.num_samples,
        **{f"environment.{key}": value for key, value in environment.items()},
        **{f"sampling.{key}": value for key, value in sampling.items()},
    }


def _failure_causes(store: RunStore, parts: Sequence[str]) -> list[str]:
    """Causes of the trajectories that parts lack."""
    return [
        cause
        for file in store.failure_files(parts)
        for cause in store.read_table(file, FAILURE_SCHEMA, ["cause"])["cause"].to_pylist()
    ]
