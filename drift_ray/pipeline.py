"""The order of the steps, and which of them are done.

A step is done when its last file is committed and carries the digest of the present settings and
inputs. So running again skips what is finished, continues what was interrupted, and redoes exactly
what a changed setting affects.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from drift_ray.cluster import ray_cluster, replicas_can_stay
from drift_ray.config import RunConfig
from drift_ray.lineage import claim_run, trace
from drift_ray.progress import console
from drift_ray.store import MODEL, RunStore
from drift_ray.tasks.holdout import check_disjoint
from drift_ray.tasks.sources import load_prompts

if TYPE_CHECKING:
    from drift_ray.rollout.pool import ReplicaPool
    from drift_ray.rollout.worker import PolicyRef

REFERENCE = "reference"
TRAINED = "trained"


class Stage(StrEnum):
    """What a user can ask for."""

    ROLLOUT = "rollout"
    WEIGH = "weigh"
    TRAIN = "train"
    EVALUATE = "evaluate"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    stage: Stage
    name: str
    is_done: Callable[[], bool]
    run: Callable[[ReplicaPool], None]


class Pipeline:
    """One run: its configuration, its directory, its prompts and what they amount to.

    Raises:
        TaskError: A prompt set is empty or wrong, or held-out prompts are also trained on.
        ModelError: The reference policy is missing.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.store = RunStore(config.run)
        name, seed = config.task.name, config.seed
        self._train_prompts = load_prompts(config.task.train, task=name, seed=seed)
        self._test_prompts = load_prompts(config.task.test, task=name, seed=seed)
        check_disjoint(self._train_prompts, self._test_prompts)
        self._lineage = trace(config, self._train_prompts, self._test_prompts)

    def run(self, stages: Collection[Stage] = frozenset(Stage)) -> None:
        """Bring the given stages up to date.

        Raises:
            FingerprintError: The run directory holds trajectories of other settings.
            DriftRayError: The first step that fails says what, where and what to do.
        """
        claim_run(self.store, self.config, self._lineage)
        steps = [step for step in self._steps() if step.stage in stages]
        pending = [step for step in steps if not step.is_done()]
        for step in steps:
            if step not in pending:
                console.print(f"[dim]✓ {step.name}: done before[/dim]")
        if not pending:
            return
        from drift_ray.rollout.pool import ReplicaPool

        config = self.config
        with ExitStack() as stack:
            with _timed("start Ray"):
                stack.enter_context(ray_cluster(config))
            pool = stack.enter_context(ReplicaPool(self.store.url, config.model, config.replicas))
            for step in pending:
                with _timed(step.name):
                    step.run(pool)

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Committed, up-to-date evaluation metrics by model name."""
        from drift_ray.evaluation import stage as evaluation

        return {
            name: self.store.read_json(evaluation.metrics_name(name))
            for name, policy in self._policies().items()
            if evaluation.is_done(self.store, self._lineage, name=name, policy=policy)
        }

    def _steps(self) -> list[_Step]:
        """All steps in order.

        The reference is evaluated right after the rollouts, while its replicas are up.
        """
        from drift_ray.rollout import stage as rollout
        from drift_ray.rollout.sampling import missing_jobs
        from drift_ray.training import stage as training
        from drift_ray.weighting import stage as weighting

        config, store, lineage = self.config, self.store, self._lineage
        jobs = rollout.plan(config, lineage, self._train_prompts)

        def train(pool: ReplicaPool) -> None:
            if not replicas_can_stay(config):
                pool.stop()
            training.run(config, store, digest=lineage.model)

        return [
            _Step(
                stage=Stage.ROLLOUT,
                name="rollout",
                is_done=lambda: not missing_jobs(store, jobs),
                run=lambda pool: rollout.run(store, pool, jobs),
            ),
            self._evaluation(REFERENCE),
            _Step(
                stage=Stage.WEIGH,
                name="weigh",
                is_done=lambda: weighting.is_done(store, config, lineage),
                run=lambda pool: weighting.run(store, config, lineage),
            ),
            _Step(
                stage=Stage.TRAIN,
                name="train",
                is_done=lambda: training.is_done(store, digest=lineage.model),
                run=train,
            ),
            self._evaluation(TRAINED),
        ]

    def _evaluation(self, name: str) -> _Step:
        from drift_ray.evaluation import stage as evaluation

        policy = self._policies()[name]

        def evaluate(pool: ReplicaPool) -> None:
            evaluation.run(
                self.store,
                pool,
                self.config,
                self._lineage,
                self._test_prompts,
                name=name,
                policy=policy,
            )

        return _Step(
            stage=Stage.EVALUATE,
            name=f"evaluate {name}",
            is_done=lambda: evaluation.is_done(self.store, self._lineage, name=name, policy=policy),
            run=evaluate,
        )

    def _policies(self) -> dict[str, PolicyRef]:
        from drift_ray.rollout.worker import PolicyRef

        return {
            REFERENCE: PolicyRef(digest=self._lineage.reference),
            TRAINED: PolicyRef(digest=self._lineage.model, folder=MODEL),
        }


@contextmanager
def _timed(name: str) -> Iterator[None]:
    started = time.monotonic()
    console.print(f"[bold]▸ {name}[/bold]")
    yield
    console.print(f"[green]✓[/green] {name}: {time.monotonic() - started:.1f} s")
