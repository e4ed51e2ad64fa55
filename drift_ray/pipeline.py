"""The order of the steps, and which of them are done.

A step is done when its last file is committed and carries the digest of the present settings and
inputs. So running again skips what is finished, continues what was interrupted, and redoes exactly
what a changed setting affects.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from drift_ray.cluster import (
    logical_cpus,
    placed_apart,
    prepare_ray,
    ray_cluster,
    replicas_can_stay,
)
from drift_ray.config import RunConfig
from drift_ray.errors import StageError
from drift_ray.evaluation.results import (
    REFERENCE,
    TRAINED,
    Benchmark,
    evaluation_folder,
    metrics_name,
)
from drift_ray.lineage import claim_run, trace
from drift_ray.logs import log_context
from drift_ray.models import absolute_model_path
from drift_ray.progress import console
from drift_ray.store import MODEL, RunStore
from drift_ray.tasks.environment import environment_kind
from drift_ray.tasks.graders import get_grader
from drift_ray.tasks.holdout import check_disjoint
from drift_ray.tasks.sources import load_prompts
from drift_ray.training.extras import check_installed
from drift_ray.uploads import abort_abandoned_uploads

if TYPE_CHECKING:
    from drift_ray.overlap import TrainingBeside
    from drift_ray.rollout.pool import ReplicaPool
    from drift_ray.rollout.sampling import PartPlan
    from drift_ray.rollout.work import PolicyRef
    from drift_ray.training.waves import Overlap

logger = logging.getLogger(__name__)


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
    run: Callable[[ReplicaPool], str]
    """Does the work and says in a few words what came of it."""
    needs: _Step | None = None
    """What must be done before."""
    skip_without_needs: bool = False
    """Whether that is no error but a reason to leave this step out."""
    check: Callable[[], None] = lambda: None
    """Raises if what is done is not good enough to go on with."""

    def lacks_needs(self) -> bool:
        return self.needs is not None and not self.needs.is_done()


class Pipeline:
    """One run: its configuration, its directory, its prompts and what they amount to.

    Raises:
        TaskError: A prompt set is empty or wrong, or held-out prompts are also trained on.
        ModelError: The reference policy is missing.
    """

    def __init__(self, config: RunConfig) -> None:
        model = config.model.model_copy(update={"path": absolute_model_path(config.model.path)})
        self.config = config = config.model_copy(update={"model": model})
        # These fail at once, not after the engines have started.
        graders = {name: config.benchmark_grader(name) for name in config.evaluation.benchmarks}
        for grader in {config.task.grader, *graders.values()}:
            get_grader(grader)
        environment_kind(config.task.environment)
        check_installed(config.training)
        self.store = RunStore(config.run)
        name, seed = config.task.name, config.seed
        self._train_prompts = load_prompts(config.task.train, task=name, seed=seed)
        test = load_prompts(config.task.test, task=name, seed=seed)
        check_disjoint(self._train_prompts, test)
        benchmarks = {
            each: load_prompts(benchmark.prompts, task=each, seed=seed)
            for each, benchmark in config.evaluation.benchmarks.items()
        }
        for each, prompts in benchmarks.items():
            setting = f"evaluation.benchmarks.{each}.prompts"
            check_disjoint(self._train_prompts, prompts, setting=setting)
        self._benchmarks = {
            name: Benchmark(name=None, prompts=test, grader=config.task.grader),
            **{
                each: Benchmark(name=each, prompts=prompts, grader=graders[each])
                for each, prompts in benchmarks.items()
            },
        }
        self.lineage = trace(config, self._train_prompts, test, benchmarks)
        self._beside: TrainingBeside | None = None

    def run(self, stages: Collection[Stage] = frozenset(Stage)) -> None:
        """Bring the given stages up to date.

        Raises:
            FingerprintError: The run directory holds trajectories of other settings.
            DriftRayError: The first step that fails says what, where and what to do.
        """
        prepare_ray()
        claim_run(self.store, self.config, self.lineage)
        abort_abandoned_uploads(self.store)
        steps = [step for step in self._steps() if step.stage in stages]
        pending: list[_Step] = []
        for step in steps:
            if step.needs not in pending and step.lacks_needs():
                if not step.skip_without_needs:
                    self._check_needs(step)
                console.print(f"[dim]- {step.name}: there is no model of these settings yet[/dim]")
            elif step.is_done():
                step.check()
                console.print(f"[dim]✓ {step.name}: done before[/dim]")
            else:
                pending.append(step)
        if pending:
            self._run_steps(pending)
        if Stage.EVALUATE in stages:
            self.comparisons()

    @property
    def steps(self) -> Sequence[_Step]:
        """All steps in order, to be looked at."""
        return self._steps()

    @property
    def sampled(self) -> dict[str, PartPlan]:
        """The parts of every step that samples, whether done or not, by the step's name."""
        from drift_ray.evaluation import stage as evaluation
        from drift_ray.rollout import stage as rollout

        found = {"rollout": rollout.plan(self.config, self.lineage, self._train_prompts)}
        for name, policy in self._policies().items():
            for each in self._benchmarks.values():
                step = f"evaluate {name}" + (f" on {each.name}" if each.name else "")
                found[step] = evaluation.plan(
                    self.config, self.lineage, each, name=name, policy=policy
                )
        return found

    @property
    def overlap(self) -> Overlap | None:
        """What a training beside the rollouts has to know; None where it waits for their end."""
        from drift_ray.training.waves import Overlap

        if not self.config.pipeline.overlap:
            return None
        num_trajectories = len(self._train_prompts) * self.config.rollout.group_size
        return Overlap(weights_digest=self.lineage.weights, num_trajectories=num_trajectories)

    def _run_steps(self, steps: Sequence[_Step]) -> None:
        from drift_ray.rollout.pool import ReplicaPool

        config = self.config
        with (
            ray_cluster(config),
            ReplicaPool(self.store.url, config.model, config.replicas) as pool,
            self._training_beside(steps),
        ):
            for step in steps if self._beside is None else _weighed_early(steps):
                self._check_needs(step)
                if self._beside:
                    self._beside.raise_if_failed()  # rather than after hours of the next step
                started = time.monotonic()
                with log_context(run=str(self.store), stage=step.name):
                    outcome = step.run(pool)
                elapsed = time.monotonic() - started
                console.print(f"[green]✓[/green] {step.name}: {outcome} ({elapsed:.1f} s)")

    @contextmanager
    def _training_beside(self, steps: Sequence[_Step]) -> Iterator[None]:
        """Train beside the other steps, if that is wanted, due, possible and finds room."""
        from drift_ray.topup.rounds import read_rounds

        due = {step.stage for step in steps}
        overlap = self.overlap
        if overlap is None or not due >= {Stage.ROLLOUT, Stage.WEIGH, Stage.TRAIN}:
            yield
            return
        # Nodes for trainers alone may not be there yet: a cluster grows when they are asked for.
        if not (placed_apart(self.config) or replicas_can_stay(self.config)):
            logger.warning(
                "pipeline.overlap: the cluster has no room for %d replicas and %d training workers "
                "at once (%d CPUs with what Ray needs), so they take turns. Give it more nodes, or "
                "lower replicas.num_replicas or training.num_workers.",
                self.config.replicas.num_replicas.max,
                self.config.training.num_workers.max,
                logical_cpus(self.config),
            )
            yield
            return
        if read_rounds(self.store):
            logger.warning(
                "pipeline.overlap: after a top-up, groups stand in several parts, so weights need "
                "all of them: the training waits for the rollouts."
            )
            yield
            return
        from drift_ray.overlap import TrainingBeside

        self._beside = TrainingBeside(self.store, self.config, self.lineage, overlap)
        try:
            yield
        finally:
            self._beside.close()
            self._beside = None

    def forget_failures(self, stage: Stage) -> int:
        """Delete the parts with failed trajectories of the rollouts, or of all evaluations.

        Returns:
            How many parts there were.

        Raises:
            FingerprintError: The run directory holds trajectories of other settings.
        """
        from drift_ray.evaluation import stage as evaluation
        from drift_ray.rollout import stage as rollout

        config, store, lineage = self.config, self.store, self.lineage
        claim_run(store, config, lineage)
        if stage is Stage.ROLLOUT:
            return rollout.plan(config, lineage, self._train_prompts).forget_failures(store)
        return sum(
            evaluation.forget_failures(store, config, lineage, each, name=name, policy=policy)
            for each in self._benchmarks.values()
            for name, policy in self._policies().items()
        )

    def topup(self, *, below_ess: float, budget: int | None) -> dict[str, Any] | None:
        """Sample more trajectories of the prompts that need them.

        Args:
            below_ess: ESS over group size below which a prompt is topped up.
            budget: Trajectories to sample at most.

        Returns:
            What came of it; None if no prompt needs more.

        Raises:
            FingerprintError: The run directory holds trajectories of other settings.
            StageError: The run's own rollouts are not complete, or the sampling failed.
        """
        prepare_ray()
        from drift_ray.rollout import stage as rollout
        from drift_ray.rollout.pool import ReplicaPool
        from drift_ray.topup import stage as topup

        config, store, rollouts = self.config, self.store, self.lineage.rollouts
        claim_run(store, config, self.lineage)
        parts = rollout.plan(config, self.lineage, self._train_prompts)
        if not parts.is_done(store):
            raise StageError(
                f"The rollouts in {store} are not complete: who needs more is not known yet.",
                "Run `drift-ray rollout` first.",
            )
        with ray_cluster(config):
            now = topup.begin(store, config, rollouts=rollouts, below_ess=below_ess, budget=budget)
            if now is None:
                return None
            goes_on = ", a round that was interrupted" if now.was_interrupted else ""
            console.print(
                f"topup: {now.num_each} trajectories of each of {len(now.first_index)} prompts"
                f"{goes_on}"
            )
            with ReplicaPool(store.url, config.model, config.replicas) as pool:
                return topup.run(store, pool, config, now, self._train_prompts, parts.play)

    def metrics(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Committed, up-to-date metrics by task or benchmark, then by model name."""
        from drift_ray.evaluation import stage as evaluation

        found = {
            shown: {
                name: self.store.read_json(metrics_name(evaluation_folder(name, benchmark.name)))
                for name, policy in self._policies().items()
                if evaluation.is_done(
                    self.store, self.lineage, benchmark.name, name=name, policy=policy
                )
            }
            for shown, benchmark in self._benchmarks.items()
        }
        return {shown: models for shown, models in found.items() if models}

    def comparisons(self) -> dict[str, dict[str, Any]]:
        """How the trained model differs from the reference, by task or benchmark.

        Only of evaluations that are up to date; computed and committed where it is not yet.
        """
        from drift_ray.evaluation.stage import compare_policies

        policies = self._policies()
        return compare_policies(
            self.store,
            self.lineage,
            {shown: benchmark.name for shown, benchmark in self._benchmarks.items()},
            baseline=(REFERENCE, policies[REFERENCE]),
            candidate=(TRAINED, policies[TRAINED]),
        )

    def _steps(self) -> list[_Step]:
        """All steps in order.

        The reference is evaluated right after the rollouts, while its replicas are up.
        """
        from drift_ray.rollout import stage as rollout
        from drift_ray.training import stage as training
        from drift_ray.training.metric_log import publish_metrics
        from drift_ray.weighting import stage as weighting
        from drift_ray.weighting.metrics import weights_metrics
        from drift_ray.weighting.table import print_summary

        config, store, lineage = self.config, self.store, self.lineage
        parts = rollout.plan(config, lineage, self._train_prompts)

        def sample(pool: ReplicaPool) -> str:
            with self._beside.rollouts() if self._beside else nullcontext():
                totals = rollout.run(store, pool, config, parts)
            num = totals.committed.num_trajectories
            return f"{num:,} trajectories, {totals} once the engines were up"

        def make_room(pool: ReplicaPool) -> None:
            if not replicas_can_stay(config):
                pool.stop()

        def check_gate() -> None:
            weighting.check(store, config.weighting)

        def weigh(pool: ReplicaPool) -> str:
            make_room(pool)
            summary = weighting.run(store, config, lineage)
            print_summary(summary)
            with weights_metrics(str(store), summary):
                check_gate()
            ess_frac = summary["ess_frac"]["mean"] or 0.0
            return (
                f"effective sample size {ess_frac:.0%} of a group, "
                f"{summary['all_failed_frac']:.1%} of the groups all failed"
            )

        def train(pool: ReplicaPool) -> str:
            check_gate()
            make_room(pool)
            if self._beside:
                summary = self._beside.result()
            else:
                summary = training.run(config, store, digest=lineage.model, overlap=self.overlap)
            publish_metrics(store, lineage.model)
            return f"{summary['num_steps']} steps on {summary['num_samples']:,} trajectories"

        sampled = _Step(
            stage=Stage.ROLLOUT,
            name="rollout",
            is_done=lambda: parts.is_done(store, max_failed_frac=config.rollout.max_failed_frac),
            run=sample,
        )
        weighed = _Step(
            stage=Stage.WEIGH,
            name="weigh",
            is_done=lambda: weighting.is_done(store, config, lineage),
            run=weigh,
            needs=sampled,
            check=check_gate,
        )
        trained = _Step(
            stage=Stage.TRAIN,
            name="train",
            is_done=lambda: training.is_done(store, digest=lineage.model),
            run=train,
            needs=weighed,
            # Of a training beside the rollouts whose driver died at the very end.
            check=lambda: publish_metrics(store, lineage.model),
        )
        return [
            sampled,
            *self._evaluations(REFERENCE, needs=None),
            weighed,
            trained,
            *self._evaluations(TRAINED, needs=trained),
        ]

    def _check_needs(self, step: _Step) -> None:
        if step.needs and step.lacks_needs():
            raise StageError(
                f"Cannot {step.name}: the stage before it, {step.needs.name}, is not complete in "
                f"{self.store} with these settings.",
                f"Run `drift-ray {step.needs.stage}` first, or `drift-ray run` for everything.",
            )

    def _evaluations(self, name: str, *, needs: _Step | None) -> list[_Step]:
        return [
            self._evaluation(name, benchmark, needs=needs)
            for benchmark in self._benchmarks.values()
        ]

    def _evaluation(self, name: str, benchmark: Benchmark, *, needs: _Step | None) -> _Step:
        from drift_ray.evaluation import stage as evaluation

        policy = self._policies()[name]

        def evaluate(pool: ReplicaPool) -> str:
            metrics = evaluation.run(
                self.store,
                pool,
                self.config,
                self.lineage,
                benchmark,
                name=name,
                policy=policy,
            )
            first, last = metrics["success_at"][0], metrics["success_at"][-1]
            num_missing = metrics["missing"]["num_missing"]
            missing = f", {num_missing:,} trajectories missing" if num_missing else ""
            rates = (f"success@{row['k']} {row['estimate']:.3f}" for row in (first, last))
            return ", ".join(rates) + missing

        return _Step(
            stage=Stage.EVALUATE,
            name=f"evaluate {name}" + (f" on {benchmark.name}" if benchmark.name else ""),
            is_done=lambda: evaluation.is_done(
                self.store, self.lineage, benchmark.name, name=name, policy=policy
            ),
            run=evaluate,
            needs=needs,
            skip_without_needs=True,
        )

    def _policies(self) -> dict[str, PolicyRef]:
        from drift_ray.rollout.work import PolicyRef

        return {
            REFERENCE: PolicyRef(digest=self.lineage.reference),
            TRAINED: PolicyRef(digest=self.lineage.model, folder=MODEL),
        }


def _weighed_early(steps: Sequence[_Step]) -> list[_Step]:
    """The rollouts, then the weights, which tell the training that all is there, then the rest."""
    early = [Stage.ROLLOUT, Stage.WEIGH]
    return sorted(steps, key=lambda step: step.stage not in early)
