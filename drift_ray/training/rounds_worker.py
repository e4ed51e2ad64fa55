"""What one process of a training in rounds does; its model and optimizer stay over all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from drift_ray import __version__
from drift_ray.config import RunConfig
from drift_ray.store import ROUND_FILE, RunStore
from drift_ray.training import SUMMARY_FILE
from drift_ray.training.checkpoint import CheckpointState, read_state
from drift_ray.training.data import TrainingData
from drift_ray.training.learner import Learner, StepMetrics
from drift_ray.training.loop import OnCheckpoint
from drift_ray.training.metric_log import MetricLog, log_name
from drift_ray.training.monitors import effective_samples
from drift_ray.training.rounds import RoundFeed, Rounds, round_plan, round_rate
from drift_ray.training.trackers import Trackers
from drift_ray.training.worker import (
    Process,
    commit_policy,
    initial_policy,
    open_logs,
    out_of_memory_explained,
    prepare,
    remove_other_checkpoints,
)

# Its rounds are recorded, and compared with what is there, on their own.
_DATA = "rounds"


def train_rounds(
    config: RunConfig,
    store: RunStore,
    *,
    digest: str,
    process: Process,
    resume_from: Path | None,
    on_checkpoint: OnCheckpoint,
    rounds: Rounds,
    on_step: Callable[[StepMetrics], None] | None = None,
) -> None:
    """Train on round after round, and commit the policy of each.

    That of the last round is the run's model. A policy that is there already stays: it may have
    sampled, and steps that are repeated may differ from it in the last digit.

    Args:
        config: The run.
        store: Its directory.
        digest: Names this training.
        process: Which one this is.
        resume_from: A checkpoint of this training.
        on_checkpoint: Called on every rank to save one.
        rounds: All rounds; each is waited for.
        on_step: Called after every step.

    Raises:
        DriftRayError: As :func:`drift_ray.training.worker.train_policy`.
    """
    reference = prepare(config, process)
    training, group = config.training, process.group()
    state = CheckpointState(step=0, data=_DATA, digest=digest)
    if resume_from:
        state = read_state(resume_from)
        # Policies of other settings may stand where those of its rounds were: then they are remade.
        if group.share(not all(_is_done(store, rounds, each) for each in range(state.round))):
            state, resume_from = CheckpointState(step=0, data=_DATA, digest=digest), None
    feed = RoundFeed(store, config, group, digest=digest, rounds=rounds)
    data = feed.read(state.round)
    model = initial_policy(config, reference, data)
    log_file = log_name(digest, beside_rollouts=True)
    with open_logs(config, store, digest, process, log_file) as logs, out_of_memory_explained():
        learner = Learner(model, training, process.device)
        if resume_from:
            state = learner.resume(resume_from, data=_DATA, digest=digest)
        work = _Work(
            config=config,
            store=store,
            process=process,
            reference=reference,
            rounds=rounds,
            learner=learner,
            logs=logs,
            on_checkpoint=on_checkpoint,
            on_step=on_step,
        )
        for number in range(state.round, len(rounds.tasks)):
            if number > state.round:
                data = feed.read(number)
                state = replace(state, round=number, round_began=state.step)
            state, figures = work.train(data, state)
            if group.share(group.leads and not _is_done(store, rounds, number)):
                work.commit(state, figures)
    if group.leads:
        remove_other_checkpoints(store, digest)


@dataclass(slots=True)
class _Figures:
    """What came of a round in this attempt."""

    num_samples: int
    num_zero_weight: int
    ess: float
    num_steps: int = 0
    num_tokens: int = 0
    cpu_s: float = 0.0
    """Of all ranks, up to the last gradient."""
    duration_s: float = 0.0
    last: StepMetrics | None = None

    def add(self, metrics: StepMetrics) -> None:
        """Count a step."""
        self.num_steps += 1
        self.num_tokens += metrics.num_tokens
        self.cpu_s += metrics.cpu_s
        self.last = metrics

    def of_last_step(self) -> dict[str, float | None]:
        """Its losses; None without a step."""
        names = ("loss", "nll", "kl_ref")
        return {name: None if self.last is None else getattr(self.last, name) for name in names}

    def summary(self) -> dict[str, Any]:
        """For the policy's summary."""
        figures = {name: getattr(self, name) for name in self.__slots__ if name != "last"}
        return figures | self.of_last_step()


@dataclass(kw_only=True, slots=True)
class _Work:
    """What stays from round to round."""

    config: RunConfig
    store: RunStore
    process: Process
    reference: Path
    rounds: Rounds
    learner: Learner
    logs: Sequence[MetricLog | Trackers]
    on_checkpoint: OnCheckpoint
    on_step: Callable[[StepMetrics], None] | None
    saved_at: float = field(default_factory=time.monotonic)

    def train(self, data: TrainingData, state: CheckpointState) -> tuple[CheckpointState, _Figures]:
        """Take the steps of a round that are left."""
        training, rounds, number = self.config.training, self.rounds, state.round
        began = time.monotonic()
        figures = _Figures(
            num_samples=len(data),
            num_zero_weight=data.num_zero_weight,
            ess=effective_samples(data.importance_weight) if len(data) else 0.0,
        )
        plan = round_plan(data, rounds.tasks[number], training)
        num_later = len(rounds.tasks) - number - 1
        num_steps = state.round_began + (1 + num_later) * plan.num_steps
        if plan.num_steps and state.step == state.round_began and not rounds.carries_optimizer:
            self.learner.forget_moments()
            state = replace(state, moments_since=state.step)
        while (step := state.step - state.round_began) < plan.num_steps:
            batch = plan.batch(step)
            rate = round_rate(step, plan, number, rounds, training)
            due = time.monotonic() - self.saved_at >= training.checkpoint_every_minutes * 60
            taken = self.learner.step(data, batch, step=state.step, rate=rate, due=due)
            metrics = self.learner.metrics(taken, data, batch, step=state.step, num_steps=num_steps)
            figures.add(metrics)
            for log in self.logs:
                log.add(asdict(metrics) | {"round": number + 1})
            if self.on_step is not None:
                self.on_step(metrics)
            state = replace(state, step=state.step + 1)
            ends = not num_later and step + 1 == plan.num_steps
            if ends or taken.sums.due or state.step % training.checkpoint_every_steps == 0:
                self._save(state)
        figures.duration_s = time.monotonic() - began
        return state, figures

    def commit(self, state: CheckpointState, figures: _Figures) -> None:
        """Commit the policy that a round has made; every rank calls it."""
        number, tasks = state.round, self.rounds.tasks
        is_last = number + 1 == len(tasks)
        earlier = tasks[:number] if is_last and self.process.rank == 0 else ()
        rounds = [self.store.subrun(each.folder).read_json(ROUND_FILE) for each in earlier]
        parts = [figures.summary(), *(each["training"] for each in rounds)]
        summary = {
            "digest": tasks[number].digest,
            "drift_ray": __version__,
            "reference": self.config.model.path,
            "weighting": self.config.weighting.name,
            "round": number + 1,
            # Of all rounds, where this is the run's model.
            "num_samples": sum(each["num_samples"] for each in parts),
            "ess": sum(each["ess"] for each in parts),
            "num_steps": state.step,
            **figures.of_last_step(),
            "training": figures.summary(),
        }
        commit_policy(
            self.learner.model,
            self.process,
            self.config,
            self.store if is_last else self.store.subrun(tasks[number].folder),
            reference=self.reference,
            summary=summary,
        )

    def _save(self, state: CheckpointState) -> None:
        for log in self.logs:
            log.flush()  # a resumed training does not log the steps before its checkpoint again
        self.on_checkpoint(state, self.learner.model, self.learner.optimizer)
        self.saved_at = time.monotonic()


def _is_done(store: RunStore, rounds: Rounds, number: int) -> bool:
    """Whether the policy of a round is committed, or was and is no longer needed."""
    task = rounds.tasks[number]
    subrun = store.subrun(task.folder)
    if number + 1 == len(rounds.tasks):
        return store.has_digest(SUMMARY_FILE, task.digest)
    return any(subrun.has_digest(name, task.digest) for name in (SUMMARY_FILE, ROUND_FILE))
