"""One replica: a Ray actor that owns an engine, plays parts and commits them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from drift_ray.config import EnvironmentConfig, ModelConfig, ReplicaConfig, SamplingConfig
from drift_ray.models import resolve_model
from drift_ray.rollout.chat import ChatFormat
from drift_ray.rollout.engine import VllmEngine
from drift_ray.rollout.episode import Episode
from drift_ray.rollout.player import play
from drift_ray.schema import trajectory_table
from drift_ray.store import RunStore
from drift_ray.tasks.environment import UnaryFeedbackEnvironment
from drift_ray.tasks.graders import get_grader
from drift_ray.tasks.parsing import prefill
from drift_ray.types import Prompt, Trajectory


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
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PartReport:
    """What came of a job; counts and sums only, so reports add up."""

    name: str
    num_trajectories: int
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
        self._store = RunStore(run_url)
        self._model = model
        self._replica = replica
        self._loaded: PolicyRef | None = None

    @cached_property
    def _reference(self) -> Path:
        return resolve_model(self._model.path)

    # Not in __init__: Ray reports an actor's failing constructor without its exception.
    @cached_property
    def _engine(self) -> VllmEngine:
        return VllmEngine(
            self._reference,
            on_gpu=self._replica.num_gpus > 0,
            arguments=self._replica.engine,
            trust_remote_code=self._model.trust_remote_code,
        )

    def warm_up(self) -> None:
        """Start the engine ahead of the first job."""
        _ = self._engine

    def run(self, job: PartJob) -> PartReport:
        """Play all trajectories of a job and commit the part."""
        started = time.monotonic()
        self._load(job.policy)
        order = {prompt.prompt_id: index for index, prompt in enumerate(job.prompts)}
        trajectories = sorted(
            play(self._engine, self._episodes(job)),
            key=lambda t: (order[t.prompt_id], t.trajectory_index),
        )
        self._store.write_table(job.name, trajectory_table(trajectories))
        return _report(job.name, trajectories, time.monotonic() - started)

    def _load(self, policy: PolicyRef) -> None:
        if self._loaded is None and policy.folder is None:
            self._loaded = policy
        if policy == self._loaded:
            return
        folder = self._reference if policy.folder is None else self._store.local_dir(policy.folder)
        self._engine.load_weights(folder)
        self._loaded = policy

    def _episodes(self, job: PartJob) -> Iterator[Episode]:
        chat = ChatFormat(self._engine.tokenizer, prefill(think=job.environment.think))
        grade = get_grader(job.grader)
        for prompt in job.prompts:
            for index in range(job.group_size):
                yield Episode(
                    prompt,
                    trajectory_index=index,
                    environment=UnaryFeedbackEnvironment(
                        prompt, config=job.environment, grade=grade
                    ),
                    chat=chat,
                    sampling=job.sampling,
                    max_model_len=self._engine.max_model_len,
                    seed=job.seed,
                )


def _report(name: str, trajectories: list[Trajectory], duration_s: float) -> PartReport:
    counts: Counter[str] = Counter()
    for trajectory in trajectories:
        counts["turns"] += len(trajectory.turns)
        counts["tokens"] += sum(turn.token_end - turn.token_start for turn in trajectory.turns)
        counts["solved"] += trajectory.first_success_turn is not None
    return PartReport(
        name=name,
        num_trajectories=len(trajectories),
        num_turns=counts["turns"],
        num_sampled_tokens=counts["tokens"],
        num_solved=counts["solved"],
        duration_s=duration_s,
    )
