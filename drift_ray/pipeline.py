"""Which steps of a run are due, and who does them.

Running again skips what is finished, continues what was interrupted, and redoes exactly what a
changed setting affects.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from drift_ray.cluster import prepare_ray, ray_cluster
from drift_ray.config import RunConfig
from drift_ray.errors import StageError
from drift_ray.evaluation.results import (
    REFERENCE,
    TRAINED,
    Benchmark,
    evaluation_folder,
    metrics_name,
)
from drift_ray.lineage import check_run, claim_run, trace
from drift_ray.logs import log_context
from drift_ray.models import absolute_model_path
from drift_ray.outcome import recorded
from drift_ray.progress import console
from drift_ray.round_plan import Round, plan_rounds, with_last_model
from drift_ray.steps import Hands, RunInputs, Stage, Step, steps_of
from drift_ray.store import RunStore
from drift_ray.tasks.environment import environment_kind
from drift_ray.tasks.graders import get_grader
from drift_ray.tasks.holdout import check_disjoint
from drift_ray.tasks.sources import load_prompts
from drift_ray.training.extras import check_installed
from drift_ray.uploads import abort_abandoned_uploads

if TYPE_CHECKING:
    from drift_ray.rollout.pool import ReplicaPool
    from drift_ray.training.waves import Overlap

__all__ = ["Pipeline", "Stage"]

_TRAINING = {Stage.ROLLOUT, Stage.WEIGH, Stage.TRAIN}
"""What has to be due for a training beside the rollouts."""


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
        prompts = load_prompts(config.task.train, task=name, seed=seed)
        test = load_prompts(config.task.test, task=name, seed=seed)
        check_disjoint(prompts, test)
        benchmarks = {
            each: load_prompts(benchmark.prompts, task=each, seed=seed)
            for each, benchmark in config.evaluation.benchmarks.items()
        }
        for each, held_out in benchmarks.items():
            setting = f"evaluation.benchmarks.{each}.prompts"
            check_disjoint(prompts, held_out, setting=setting)
        lineage = trace(config, prompts, test, benchmarks)
        rounds: list[Round] = []
        if config.rounds.num_rounds > 1:
            rounds = plan_rounds(config, lineage, len(prompts))
            lineage = with_last_model(lineage, rounds)
        self.lineage = lineage
        self.inputs = RunInputs(
            config=config,
            store=self.store,
            lineage=self.lineage,
            prompts=prompts,
            benchmarks={
                name: Benchmark(name=None, prompts=test, grader=config.task.grader),
                **{
                    each: Benchmark(name=each, prompts=held_out, grader=graders[each])
                    for each, held_out in benchmarks.items()
                },
            },
            rounds=rounds,
        )

    def run(self, stages: Collection[Stage] = frozenset(Stage)) -> None:
        """Bring the given stages up to date.

        Raises:
            FingerprintError: The run directory holds trajectories of other settings.
            DriftRayError: The first step that fails says what, where and what to do.
        """
        prepare_ray()
        if self.inputs.rounds and 0 < len(_TRAINING & set(stages)) < len(_TRAINING):
            self._refuse_with_rounds("One stage alone")
        for each in self.inputs.rounds:
            check_run(self.store.subrun(each.folder), each.lineage)  # before any of them is redone
        claim_run(self.store, self.config, self.lineage)
        with recorded(self.store, [each for each in Stage if each in stages]) as at:
            abort_abandoned_uploads(self.store)
            if pending := self._pending(stages):
                self._run_steps(pending, at)
            if Stage.EVALUATE in stages:
                self.comparisons()

    def _pending(self, stages: Collection[Stage]) -> list[Step]:
        steps = [step for step in steps_of(self.inputs) if step.stage in stages]
        pending: list[Step] = []
        for step in steps:
            if step.needs not in pending and step.lacks_needs():
                if not step.skip_without_needs:
                    step.check_needs(self.store)
                console.print(f"[dim]- {step.name}: there is no model of these settings yet[/dim]")
            elif step.is_done():
                step.check()
                console.print(f"[dim]✓ {step.name}: done before[/dim]")
            else:
                pending.append(step)
        return pending

    @property
    def overlap(self) -> Overlap | None:
        """What a training beside the rollouts has to know; None where it waits for their end."""
        return self.inputs.overlap

    def _run_steps(self, steps: Sequence[Step], at: Callable[[str], None]) -> None:
        from drift_ray.rollout.pool import ReplicaPool

        config = self.config
        with (
            ray_cluster(config),
            ReplicaPool(self.store.url, config.model, config.replicas) as pool,
            self._hands(pool, {step.stage for step in steps}) as hands,
        ):
            beside = hands.beside
            for step in steps if beside is None else _weighed_early(steps):
                if beside:
                    beside.raise_if_failed()  # rather than after hours of the next step
                at(step.name)
                step.check_needs(self.store)
                started = time.monotonic()
                with log_context(run=str(self.store), stage=step.name):
                    outcome = step.run(hands)
                elapsed = time.monotonic() - started
                console.print(f"[green]✓[/green] {step.name}: {outcome} ({elapsed:.1f} s)")

    @contextmanager
    def _hands(self, pool: ReplicaPool, due: Collection[Stage]) -> Iterator[Hands]:
        """The pool, and a training that begins before its turn where one is due."""
        from drift_ray.overlap import training_beside
        from drift_ray.rounds import training_in_rounds

        store, config = self.store, self.config
        if self.inputs.rounds and Stage.TRAIN in due:
            with training_in_rounds(store, config, self.inputs.rounds) as in_rounds:
                yield Hands(pool=pool, in_rounds=in_rounds)
            return
        overlap = self.overlap if set(due) >= _TRAINING else None
        with training_beside(store, config, self.lineage, overlap) as beside:
            yield Hands(pool=pool, beside=beside)

    def _refuse_with_rounds(self, what: str) -> NoReturn:
        raise StageError(
            f"{what} is not possible with rounds.num_rounds {len(self.inputs.rounds)}: sampling "
            "and training take turns.",
            "Use `drift-ray run`, and `drift-ray evaluate` to evaluate alone.",
        )

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
        if self.inputs.rounds and stage is Stage.ROLLOUT:
            self._refuse_with_rounds("Sampling failed trajectories again")
        claim_run(store, config, lineage)
        if stage is Stage.ROLLOUT:
            return rollout.plan(config, lineage, self.inputs.prompts).forget_failures(store)
        return sum(
            evaluation.forget_failures(store, config, lineage, each, name=name, policy=policy)
            for each in self.inputs.benchmarks.values()
            for name, policy in self.inputs.policies.items()
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
        if self.inputs.rounds:
            self._refuse_with_rounds("A top-up")
        prepare_ray()
        from drift_ray.rollout import stage as rollout
        from drift_ray.rollout.pool import ReplicaPool
        from drift_ray.topup import stage as topup

        config, store, rollouts = self.config, self.store, self.lineage.rollouts
        claim_run(store, config, self.lineage)
        parts = rollout.plan(config, self.lineage, self.inputs.prompts)
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
                return topup.run(store, pool, config, now, self.inputs.prompts, parts.play)

    def metrics(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Committed, up-to-date metrics by task or benchmark, then by model name."""
        from drift_ray.evaluation import stage as evaluation

        found = {
            shown: {
                name: self.store.read_json(metrics_name(evaluation_folder(name, benchmark.name)))
                for name, policy in self.inputs.policies.items()
                if evaluation.is_done(
                    self.store, self.lineage, benchmark.name, name=name, policy=policy
                )
            }
            for shown, benchmark in self.inputs.benchmarks.items()
        }
        return {shown: models for shown, models in found.items() if models}

    def comparisons(self) -> dict[str, dict[str, Any]]:
        """How the trained model differs from the reference, by task or benchmark.

        Only of evaluations that are up to date; computed and committed where it is not yet.
        """
        from drift_ray.evaluation.stage import compare_policies

        policies = self.inputs.policies
        return compare_policies(
            self.store,
            self.lineage,
            {shown: benchmark.name for shown, benchmark in self.inputs.benchmarks.items()},
            baseline=(REFERENCE, policies[REFERENCE]),
            candidate=(TRAINED, policies[TRAINED]),
        )


def _weighed_early(steps: Sequence[Step]) -> list[Step]:
    """The rollouts, then the weights, which tell the training that all is there, then the rest."""
    early = [Stage.ROLLOUT, Stage.WEIGH]
    return sorted(steps, key=lambda step: step.stage not in early)
