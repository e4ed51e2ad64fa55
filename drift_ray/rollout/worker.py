"""One replica: a Ray actor that owns an engine, plays groups and commits parts."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from drift_ray.config import ModelConfig, ReplicaConfig
from drift_ray.errors import ModelError
from drift_ray.lineage import digest
from drift_ray.models import model_fingerprint, resolve_model
from drift_ray.rollout.chat import ChatFormat
from drift_ray.rollout.episode import Episode, Rules
from drift_ray.rollout.loop import EngineLoop
from drift_ray.rollout.protocol import Engine
from drift_ray.rollout.referee import Referee
from drift_ray.rollout.work import (
    Group,
    GroupKey,
    GroupOutcome,
    Part,
    PartReport,
    Play,
    PolicyRef,
    Update,
)
from drift_ray.schema import (
    FAILURES_KEY,
    TRAJECTORY_SCHEMA,
    content_hash,
    failure_table,
    trajectory_table,
)
from drift_ray.store import FAILURES, RunStore
from drift_ray.tasks.environment import make_environment
from drift_ray.tasks.graders import get_grader, needs_process
from drift_ray.tasks.grading_pool import GradingPool
from drift_ray.tasks.parsing import prefill
from drift_ray.types import Failure, FailureCause, Grader, Prompt, Trajectory

MakeEngine = Callable[[Path, ModelConfig, ReplicaConfig], Engine]
"""Loads the reference policy of a folder."""

HEARTBEAT_S = 2.0
"""A replica answers at least this often."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where a replica runs."""

    node: str
    pid: int


class ReplicaWorker:
    """Plays groups on one engine. Holds nothing that cannot be played again.

    Args:
        run_url: The run directory.
        model: The reference policy.
        replica: Size and arguments of the engine.
        make_engine: Loads the engine.
    """

    def __init__(
        self, run_url: str, model: ModelConfig, replica: ReplicaConfig, make_engine: MakeEngine
    ) -> None:
        # Nothing that may fail: Ray reports a failing constructor without its exception.
        self._run_url = run_url
        self._model = model
        self._replica = replica
        self._make_engine = make_engine
        self._loaded: PolicyRef | None = None
        self._current: tuple[Play, Rules] | None = None
        self._graders: dict[str, Grader] = {}

    @cached_property
    def _store(self) -> RunStore:
        return RunStore(self._run_url)

    @cached_property
    def _reference(self) -> Path:
        return resolve_model(self._model.path)

    def place(self) -> Placement:
        """Where this replica runs; answers as soon as it has found room."""
        return Placement(node=platform.node(), pid=os.getpid())

    def warm_up(self) -> Update:
        """Start the engine."""
        config = self._replica
        self._engine = self._make_engine(self._reference, self._model, config)
        self._loop = EngineLoop(
            self._engine,
            Referee(
                num_threads=config.environment_threads, deadline_s=config.environment_deadline_s
            ),
            trajectories_in_flight=config.trajectories_in_flight,
            stall_deadline_s=config.stall_deadline_s,
        )
        self._cpu_up_s = time.process_time()
        return self._update(more=False, timeout_s=0.0)

    def exchange(
        self,
        play: Play,
        groups: Sequence[Group],
        forget: Sequence[GroupKey],
        more: bool,
        timeout_s: float,
    ) -> Update:
        """Take on groups, drop what is committed, and answer when there is something to tell.

        Args:
            play: How these groups, and those that come next, are played.
            groups: New groups.
            forget: Finished groups that need not be kept any longer.
            more: Whether further groups are waiting for a replica.
            timeout_s: When to answer at the latest.
        """
        self._loop.forget(forget)
        for group in groups:
            self._loop.add(group.key, play.group_size, partial(self._episodes, play, group.prompt))
        return self._update(more=more, timeout_s=timeout_s)

    def fetch(self, keys: Sequence[GroupKey]) -> list[GroupOutcome]:
        """Outcomes of finished groups."""
        return [self._loop.outcome(key) for key in keys]

    def keep(self, keys: Sequence[GroupKey], outcomes: Sequence[GroupOutcome]) -> None:
        """Keep the outcomes of a replica that leaves."""
        for key, outcome in zip(keys, outcomes, strict=True):
            self._loop.keep(key, outcome)

    def commit(
        self,
        part: Part,
        play: Play,
        given_up: dict[int, str],
        elsewhere: Sequence[Sequence[int]],
        *fetched: Sequence[GroupOutcome],
    ) -> PartReport:
        """Write a part whose groups are all finished.

        Args:
            part: The part.
            play: How it was played.
            given_up: Positions of groups that could not be played, each with the reason.
            elsewhere: Positions of the groups that each of some other replicas played,
            fetched: and their outcomes.
        """
        outcomes = {i: _failed(part.prompts[i], play, why) for i, why in given_up.items()}
        for indices, others in zip(elsewhere, fetched, strict=True):
            outcomes.update(zip(indices, others, strict=True))
        for index in range(len(part.prompts)):
            if index not in outcomes:
                outcomes[index] = self._loop.outcome((part.name, index))
        store = self._store.subrun(play.subrun)
        return write_part(store, part, [outcomes[i] for i in range(len(part.prompts))])

    def _update(self, *, more: bool, timeout_s: float) -> Update:
        update = self._loop.update(more=more, timeout_s=timeout_s)
        return replace(update, cpu_s=time.process_time() - self._cpu_up_s)

    def _load(self, policy: PolicyRef) -> None:
        if self._loaded is None:
            self._check_reference(policy)
        if policy == self._loaded:
            return
        if policy.folder is None:
            self._engine.load_weights(self._reference)
        else:
            folder = self._store.local_dir(policy.folder)
            self._engine.load_weights(folder)
            if not self._store.is_local:
                shutil.rmtree(folder)  # a download: rounds would fill the disk with them
        self._loaded = policy

    def _check_reference(self, policy: PolicyRef) -> None:
        """What a path or hub id names may differ between nodes, or have changed since."""
        if policy.folder is not None:
            return
        if digest(model_fingerprint(self._reference)) != policy.digest:
            raise ModelError(
                f"{self._model.path} on node {platform.node()} is not the model that this run "
                "samples from: its files differ.",
                "Give every node the same model folder.",
            )
        self._loaded = policy

    def _episodes(self, play: Play, prompt: Prompt) -> list[Episode]:
        """A group's episodes; called by the thread that owns the engine."""
        make = partial(
            make_environment,
            prompt,
            config=play.environment,
            grade=self._grade(play.grader),
        )
        rules = self._rules(play)
        return [
            Episode(prompt, trajectory_index=i, make_environment=make, rules=rules)
            for i in play.indices
        ]

    def _grade(self, choice: str) -> Grader:
        """The grader: in processes of its own if it may hang or crash."""
        if choice not in self._graders:
            if needs_process(choice):
                pool = GradingPool(
                    choice,
                    num_workers=self._replica.grading_processes,
                    deadline_s=self._replica.grading_deadline_s,
                )
                self._graders[choice] = pool.grade
            else:
                self._graders[choice] = get_grader(choice)
        return self._graders[choice]

    def _rules(self, play: Play) -> Rules:
        if self._current is None or self._current[0] != play:
            self._load(play.policy)
            think = play.environment.think
            chat = ChatFormat(self._engine.tokenizer, prefill(think), self._model.history)
            rules = Rules(
                chat=chat,
                sampling=play.sampling,
                max_model_len=self._engine.max_model_len,
                seed=play.seed,
                max_attempts=play.max_attempts,
            )
            self._current = play, rules
        return self._current[1]


def write_part(store: RunStore, part: Part, outcomes: Sequence[GroupOutcome]) -> PartReport:
    """Commit the outcomes of all groups of a part, unless it is committed already."""

    def by_index(record: Trajectory | Failure) -> int:
        return record.trajectory_index

    trajectories = [t for each in outcomes for t in sorted(each.trajectories, key=by_index)]
    failures = [f for each in outcomes for f in sorted(each.failures, key=by_index)]
    table = trajectory_table(trajectories)
    if failures:
        failed = failure_table(failures)
        folder, file = part.name.rsplit("/", 1)
        stem = file.removesuffix(".parquet")
        # Of another attempt's failures, the part that stays knows nothing.
        name = f"{folder}/{FAILURES}/{stem}-{content_hash(failed)[:8].decode()}.parquet"
        store.write_table(name, failed)
        table = table.replace_schema_metadata({**table.schema.metadata, FAILURES_KEY: name})
    # Last: a part that is there is work that is done.
    if not store.create_table(part.name, table):
        table = store.read_table(part.name, TRAJECTORY_SCHEMA)
        name = table.schema.metadata.get(FAILURES_KEY, b"").decode()
        return _report(part.name, table, store.num_rows([name]) if name else 0)
    return _report(part.name, table, len(failures))


def _report(name: str, table: pa.Table, num_failures: int) -> PartReport:
    turns = table["turns"].combine_chunks().flatten()
    sampled = pc.sum(pc.subtract(turns.field("token_end"), turns.field("token_start")))
    return PartReport(
        name=name,
        num_trajectories=table.num_rows,
        num_failures=num_failures,
        num_turns=len(turns),
        num_sampled_tokens=sampled.as_py() or 0,
        num_solved=table.num_rows - table["first_success_turn"].null_count,
    )


def _failed(prompt: Prompt, play: Play, why: str) -> GroupOutcome:
    return GroupOutcome(
        failures=[
            Failure(
                prompt_id=prompt.prompt_id,
                trajectory_index=index,
                turn_index=0,
                cause=FailureCause.REPLICA,
                message=why,
                trace="",
            )
            for index in play.indices
        ]
    )
