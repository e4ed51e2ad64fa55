"""One replica: a Ray actor that owns an engine, plays parts and commits them."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from drift_ray.config import EnvironmentConfig, ModelConfig, ReplicaConfig, SamplingConfig
from drift_ray.errors import ModelError
from drift_ray.lineage import digest
from drift_ray.models import model_fingerprint, resolve_model
from drift_ray.rollout.chat import ChatFormat
from drift_ray.rollout.engine import VllmEngine
from drift_ray.rollout.episode import Episode
from drift_ray.rollout.loop import EngineLoop
from drift_ray.rollout.referee import Referee
from drift_ray.schema import failure_table, trajectory_table
from drift_ray.store import FAILURES, RunStore
from drift_ray.tasks.environment import UnaryFeedbackEnvironment
from drift_ray.tasks.graders import get_grader
from drift_ray.tasks.parsing import prefill
from drift_ray.types import Failure, Prompt, Trajectory


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyRef:
    """Which weights sample: the reference policy, or a model folder of the run."""

    digest: str
    """Identifies the weights."""
    folder: str | None = None
    """Name of the folder in the run directory; None is the configured reference policy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartJob:
    """All it takes to make one part: small, picklable, and the same for every attempt."""

    name: str
    """Where the part is committed, relative to the run directory."""
    prompts: tuple[Prompt, ...]
    group_size: int
    policy: PolicyRef
    environment: EnvironmentConfig
    grader: str
    sampling: SamplingConfig
    max_attempts: int
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PartReport:
    """What came of a job; counts and sums only, so reports add up."""

    name: str
    num_trajectories: int
    num_failures: int
    num_turns: int
    num_sampled_tokens: int
    num_solved: int
    duration_s: float


class ReplicaWorker:
    """Plays jobs on one vLLM engine. Holds no state a restart would lose.

    Args:
        run_url: The run directory.
        model: The reference policy.
        replica: Size and arguments of the engine.
    """

    def __init__(self, run_url: str, model: ModelConfig, replica: ReplicaConfig) -> None:
        # Nothing that may fail: Ray reports a failing constructor without its exception.
        self._run_url = run_url
        self._model = model
        self._replica = replica
        self._loaded: PolicyRef | None = None
        self._loop: EngineLoop | None = None

    @cached_property
    def _store(self) -> RunStore:
        return RunStore(self._run_url)

    @cached_property
    def _reference(self) -> Path:
        return resolve_model(self._model.path)

    def warm_up(self) -> None:
        """Start the engine, once, ahead of the first job."""
        if self._loop is None:
            self._engine = VllmEngine(
                self._reference,
                on_gpu=self._replica.num_gpus > 0,
                arguments=self._replica.engine,
                trust_remote_code=self._model.trust_remote_code,
            )
            referee = Referee(
                num_threads=self._replica.environment_threads,
                deadline_s=self._replica.environment_deadline_s,
            )
            self._loop = EngineLoop(self._engine, referee)

    def run(self, job: PartJob) -> PartReport:
        """Play all trajectories of a job beside those of other calls, and commit the part."""
        assert self._loop is not None  # the pool warms up a replica before it sends jobs
        outcome = self._loop.submit(lambda: self._episodes(job)).result()
        order = {prompt.prompt_id: index for index, prompt in enumerate(job.prompts)}

        def position(record: Trajectory | Failure) -> tuple[int, int]:
            return order[record.prompt_id], record.trajectory_index

        trajectories = sorted(outcome.trajectories, key=position)
        failures = sorted(outcome.failures, key=position)
        if failures:
            folder, file = job.name.rsplit("/", 1)
            self._store.write_table(f"{folder}/{FAILURES}/{file}", failure_table(failures))
        # Last: a part that is there is a job that is done.
        self._store.write_table(job.name, trajectory_table(trajectories))
        return _report(job.name, trajectories, len(failures), outcome.duration_s)

    def _load(self, policy: PolicyRef) -> None:
        if self._loaded is None:
            self._check_reference(policy)
        if policy == self._loaded:
            return
        folder = self._reference if policy.folder is None else self._store.local_dir(policy.folder)
        self._engine.load_weights(folder)
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

    def _episodes(self, job: PartJob) -> list[Episode]:
        """The job's episodes; called by the thread that owns the engine."""
        self._load(job.policy)
        chat = ChatFormat(self._engine.tokenizer, prefill(think=job.environment.think))
        grade = get_grader(job.grader)
        return [
            Episode(
                prompt,
                trajectory_index=index,
                make_environment=partial(
                    UnaryFeedbackEnvironment, prompt, config=job.environment, grade=grade
                ),
                chat=chat,
                sampling=job.sampling,
                max_model_len=self._engine.max_model_len,
                seed=job.seed,
                max_attempts=job.max_attempts,
            )
            for prompt in job.prompts
            for index in range(job.group_size)
        ]


def _report(
    name: str, trajectories: list[Trajectory], num_failures: int, duration_s: float
) -> PartReport:
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    return PartReport(
        name=name,
        num_trajectories=len(trajectories),
        num_failures=num_failures,
        num_turns=len(turns),
        num_sampled_tokens=sum(turn.token_end - turn.token_start for turn in turns),
        num_solved=sum(t.first_success_turn is not None for t in trajectories),
        duration_s=duration_s,
    )
