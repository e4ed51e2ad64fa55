"""Rounds: sample with the newest policy, weigh, let the training go on, load what it has made.

Replicas and training workers stay up over all rounds and meet in the run directory, as everywhere:
the training waits for the weights of a round, and this module for the policy that comes of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from drift_ray.cluster import logical_cpus, placed_apart, replicas_can_stay
from drift_ray.config import RoundsConfig, RunConfig
from drift_ray.errors import StageError
from drift_ray.lineage import claim_run
from drift_ray.overlap import BackgroundTraining
from drift_ray.progress import console
from drift_ray.rollout import stage as rollout
from drift_ray.rollout.work import PolicyRef
from drift_ray.round_plan import Round
from drift_ray.schema import TRAJECTORY_SCHEMA, WEIGHT_SCHEMA
from drift_ray.store import MODEL, ROLLOUTS, ROUND_FILE, WEIGHTS, RunStore
from drift_ray.tasks.prompts import PromptSet
from drift_ray.training import SUMMARY_FILE
from drift_ray.training.metric_log import read_metrics
from drift_ray.training.rounds import Rounds, RoundTask, poll_s
from drift_ray.weighting import stage as weighting

if TYPE_CHECKING:
    from drift_ray.rollout.pool import ReplicaPool

STAGE = "round"
_ENDS = ("start", "end")


@contextmanager
def training_in_rounds(
    store: RunStore, config: RunConfig, rounds: Sequence[Round]
) -> Iterator[BackgroundTraining]:
    """Have the workers of a training in rounds up while this block runs.

    Args:
        store: The run directory.
        config: The run.
        rounds: All of them.

    Raises:
        StageError: The cluster has no room for replicas and workers at once.
    """
    # Nodes for trainers alone may not be there yet: a cluster grows when they are asked for.
    if not (placed_apart(config) or replicas_can_stay(config)):
        raise StageError(
            f"rounds.num_rounds: the cluster has no room for "
            f"{config.replicas.num_replicas.max} replicas and {config.training.num_workers.max} "
            f"training workers at once ({logical_cpus(config)} CPUs with what Ray needs), and both "
            "stay up over all rounds.",
            "Give it more nodes, or lower replicas.num_replicas or training.num_workers.",
        )
    training = BackgroundTraining(
        store, config, rounds[-1].lineage.model, what_to_train(config, rounds)
    )
    try:
        yield training
    finally:
        training.close()


def what_to_train(config: RunConfig, rounds: Sequence[Round]) -> Rounds:
    """All that a training has to know of the rounds of a run."""
    return Rounds(
        tasks=tuple(
            RoundTask(
                folder=each.folder,
                weights_digest=each.lineage.weights,
                digest=each.lineage.model,
                seed=each.seed,
            )
            for each in rounds
        ),
        carries_optimizer=config.rounds.optimizer == "carry",
        num_trajectories=len(rounds[0].positions) * config.rollout.group_size,
    )


def is_done(store: RunStore, each: Round) -> bool:
    """Whether a round of these settings is finished."""
    return store.subrun(each.folder).has_digest(ROUND_FILE, each.lineage.model)


def run(
    store: RunStore,
    pool: ReplicaPool,
    training: BackgroundTraining,
    config: RunConfig,
    prompts: PromptSet,
    rounds: Sequence[Round],
) -> dict[str, Any]:
    """Do the rounds that are left, and wait for the end of the training.

    Args:
        store: The run directory.
        pool: Who samples; loads every policy in place.
        training: Who learns.
        config: The run.
        prompts: Of ``task.train``.
        rounds: All of them.

    Returns:
        The training's summary.

    Raises:
        FingerprintError: A round's folder holds trajectories of other settings.
        DriftRayError: What ended sampling, weighing or training.
    """
    _tell(store, [each for each in rounds if is_done(store, each)])
    for index, each in enumerate(rounds):
        if not is_done(store, each):
            record = _run_one(store, pool, training, config, prompts, each, len(rounds))
            store.subrun(each.folder).write_json(ROUND_FILE, record)
            _tell(store, [each])
            _show(record, len(rounds))
        if index >= config.rounds.keep_policies:
            store.remove(f"{rounds[index - config.rounds.keep_policies].folder}/{MODEL}")
    return training.result()


def _run_one(
    store: RunStore,
    pool: ReplicaPool,
    training: BackgroundTraining,
    config: RunConfig,
    prompts: PromptSet,
    each: Round,
    num_rounds: int,
) -> dict[str, Any]:
    """Bring one round to its end; returns what came of it."""
    began = time.monotonic()
    lineage, subrun = each.lineage, store.subrun(each.folder)
    own = config.model_copy(update={"run": subrun.url, "seed": each.seed, "rounds": RoundsConfig()})
    claim_run(subrun, own, lineage)
    parts = rollout.plan(
        own,
        lineage,
        each.prompts(prompts),
        policy=PolicyRef(digest=lineage.reference, folder=each.sampler_folder),
        subrun=each.folder,
    )
    totals = rollout.run(
        subrun, pool, own, parts, round_of=store, meanwhile=training.raise_if_failed
    )
    sampled = time.monotonic()
    weights = weighting.run_here(subrun, own, lineage)
    weighed = time.monotonic()
    place = subrun if each.number < num_rounds else store
    while not place.has_digest(SUMMARY_FILE, lineage.model):
        has_ended = training.raise_if_failed(wait_s=poll_s(store))
        if has_ended and not place.has_digest(SUMMARY_FILE, lineage.model):
            raise StageError(
                f"The training ended without the policy of {place}.",
                "Run the same command again.",
            )
    trained = time.monotonic()
    return {
        "digest": lineage.model,
        "round": each.number,
        "num_prompts": len(each.positions),
        **_samples(subrun, config),
        "effective_num_trajectories": weights["effective_num_trajectories"],
        "duration_s": trained - began,
        "sampling_s": sampled - began,
        "sampling_cpu_s": totals.cpu_s,
        "weighing_s": weighed - sampled,
        "training_s": trained - weighed,
        "training": place.read_json(SUMMARY_FILE)["training"],
    }


def _samples(subrun: RunStore, config: RunConfig) -> dict[str, Any]:
    """What a round sampled, whichever attempts did it."""
    columns = ["first_success_turn", *(f"turns.list.element.token_{end}" for end in _ENDS)]
    table = _concat(subrun, ROLLOUTS, TRAJECTORY_SCHEMA, columns)
    if not table.num_rows:
        raise StageError(
            f"{subrun} has no trajectory: all of the round have failed.",
            "Look at its rollouts/failures, mend the cause, delete its rollouts/ and run again.",
        )
    returns = _concat(
        subrun, f"{WEIGHTS}/{config.weighting.name}", WEIGHT_SCHEMA, ["shaped_return"]
    )
    turns = table["turns"].combine_chunks().flatten()
    tokens = pc.subtract(turns.field("token_end"), turns.field("token_start"))
    turn = table["first_success_turn"].fill_null(0).to_numpy()
    return {
        "num_trajectories": table.num_rows,
        "num_turns": len(turns),
        "num_sampled_tokens": pc.sum(tokens).as_py() or 0,
        "mean_return": pc.mean(returns["shaped_return"]).as_py(),
        "success_at": [
            {"k": k, "estimate": float(np.mean((turn > 0) & (turn <= k)))}
            for k in range(1, config.task.environment.max_turns + 1)
        ],
    }


def _concat(store: RunStore, folder: str, schema: pa.Schema, columns: list[str]) -> pa.Table:
    return pa.concat_tables(store.read_table(name, schema, columns) for name in store.parts(folder))


def _tell(store: RunStore, rounds: Sequence[Round]) -> None:
    """See to it that the run's metrics have a line for each of these rounds."""
    told = {line.get("digest") for line in read_metrics(store) if line.get("stage") == STAGE}
    store.append_metrics(
        [
            {"stage": STAGE, **store.subrun(each.folder).read_json(ROUND_FILE)}
            for each in rounds
            if each.lineage.model not in told
        ]
    )


def _show(record: dict[str, Any], num_rounds: int) -> None:
    first, last = record["success_at"][0], record["success_at"][-1]
    rates = ", ".join(f"success@{each['k']} {each['estimate']:.3f}" for each in (first, last))
    console.print(
        f"round {record['round']}/{num_rounds}: mean return {record['mean_return']:.3f}, {rates}, "
        f"{record['num_trajectories']:,} trajectories ({record['sampling_s']:.1f} s), "
        f"{record['training']['num_steps']} steps ({record['training_s']:.1f} s)"
    )
