"""Training data that comes in rounds: each was sampled by the policy that the one before trained.

A round is a wave whose parts are known beforehand: all those of a sub-run, once its weights are
there. It is recorded like other waves, and its steps take its own trajectories alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass

from drift_ray.config import RunConfig, TrainingConfig
from drift_ray.store import WEIGHTS, RunStore
from drift_ray.training.batches import BatchPlan
from drift_ray.training.data import DataReader, DataRecipe, TrainingData, check_token_budget
from drift_ray.training.optimizer import learning_rate
from drift_ray.training.parts import input_parts
from drift_ray.training.shared_arrays import NodeGroup
from drift_ray.training.waves import RecordedWaves, Wave

_LOCAL_POLL_S, _REMOTE_POLL_S = 0.1, 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundTask:
    """What a training has to know of one round."""

    folder: str
    """The round's sub-run."""
    weights_digest: str
    """Of its finished weights."""
    digest: str
    """Names the policy after it."""
    seed: int
    """Orders its samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounds:
    """All rounds of a training."""

    tasks: tuple[RoundTask, ...]
    carries_optimizer: bool
    """Whether moments and schedule go on from round to round."""
    num_trajectories: int
    """Planned ones of each round."""


class RoundFeed:
    """Reads the data of one round after the other; all ranks call it alike."""

    def __init__(
        self, store: RunStore, config: RunConfig, group: NodeGroup, *, digest: str, rounds: Rounds
    ) -> None:
        """Read nothing yet.

        Args:
            store: The run directory.
            config: Of which the data depends on weighting, training and seed.
            group: The processes that train together.
            digest: Names the training.
            rounds: All rounds.

        Raises:
            DataError: The record is damaged, or a part that was trained on has changed since.
        """
        self._store, self._config, self._group, self._rounds = store, config, group, rounds
        self._book: RecordedWaves | None = None
        if group.leads:
            self._book = RecordedWaves(
                store,
                digest=digest,
                find=self._find,
                facts=asdict(rounds),
                poll_s=poll_s(store),
            )

    def read(self, number: int) -> TrainingData:
        """Wait for a round, from 0, and read it.

        Raises:
            StageError: A sample exceeds the token budget.
            DataError: A part or its weights are damaged.
        """
        wave = None
        while wave is None:
            wave = self._group.share(self._book and self._book.wave(number))
        folder, training = self._rounds.tasks[number].folder, self._config.training
        recipe = DataRecipe(
            weighting=self._config.weighting.name,
            loss_turns=training.loss_turns,
            max_context_tokens=training.max_context_tokens,
        )
        with closing(DataReader(self._store.subrun(folder), recipe, self._group)) as reader:
            reader.add([part.removeprefix(f"{folder}/") for part in wave.parts])
            data = reader.split().train
        check_token_budget(data, training.micro_batch_tokens)
        return data

    def _find(self, waves: Sequence[Wave]) -> tuple[list[str], bool] | None:
        task = self._rounds.tasks[len(waves)]
        subrun, weighting = self._store.subrun(task.folder), self._config.weighting.name
        if not subrun.has_digest(f"{WEIGHTS}/{weighting}/summary.json", task.weights_digest):
            return None
        parts = [f"{task.folder}/{part}" for part in input_parts(subrun, weighting)]
        return parts, len(waves) + 1 == len(self._rounds.tasks)


def poll_s(store: RunStore) -> float:
    """How long the sides of a training in rounds wait before they look for files again."""
    return _LOCAL_POLL_S if store.is_local else _REMOTE_POLL_S


def round_plan(data: TrainingData, task: RoundTask, config: TrainingConfig) -> BatchPlan:
    """The order of a round's samples; no step if it has none."""
    return BatchPlan(
        num_samples=len(data),
        batch_size=config.batch_size,
        num_epochs=config.num_epochs,
        seed=task.seed,
    )


def round_rate(
    step: int, plan: BatchPlan, number: int, rounds: Rounds, config: TrainingConfig
) -> float:
    """The learning rate of a step.

    How many samples carry weight is known round by round. A schedule over all rounds is laid out
    for the planned trajectories, and the steps of a round are spread evenly over its share of it.

    Args:
        step: 0-based within the round.
        plan: Of the round.
        number: Of the round, from 0.
        rounds: All of them.
        config: The schedule.
    """
    if not rounds.carries_optimizer:
        return learning_rate(step, plan.num_steps, config)
    share = -(-rounds.num_trajectories // config.batch_size) * config.num_epochs
    within = step * share // plan.num_steps
    return learning_rate(number * share + within, len(rounds.tasks) * share, config)
