"""The steps of a run: what each needs, whether it is done, and how it is done.

A step is done when its last file is committed and carries the digest of the present settings and
inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from drift_ray.cluster import replicas_can_stay
from drift_ray.config import RunConfig
from drift_ray.errors import StageError
from drift_ray.evaluation.results import REFERENCE, TRAINED, Benchmark
from drift_ray.lineage import Lineage
from drift_ray.rollout.work import PolicyRef
from drift_ray.round_plan import Round
from drift_ray.store import MODEL, RunStore
from drift_ray.tasks.prompts import PromptSet

if TYPE_CHECKING:
    from drift_ray.overlap import BackgroundTraining, TrainingBeside
    from drift_ray.rollout.pool import ReplicaPool
    from drift_ray.training.waves import Overlap


class Stage(StrEnum):
    """What a user can ask for."""

    ROLLOUT = "rollout"
    WEIGH = "weigh"
    TRAIN = "train"
    EVALUATE = "evaluate"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInputs:
    """What a run is made of."""

    config: RunConfig
    store: RunStore
    lineage: Lineage
    prompts: PromptSet
    """Of ``task.train``."""
    benchmarks: Mapping[str, Benchmark]
    """What models are evaluated on, by the name to show; ``task.test`` is one of them."""
    rounds: Sequence[Round] = ()
    """Where there are several."""

    @property
    def policies(self) -> dict[str, PolicyRef]:
        """The models that are evaluated, by name."""
        return {
            REFERENCE: PolicyRef(digest=self.lineage.reference),
            TRAINED: PolicyRef(digest=self.lineage.model, folder=MODEL),
        }

    @property
    def overlap(self) -> Overlap | None:
        """What a training beside the rollouts has to know; None where it waits for their end."""
        from drift_ray.training.waves import Overlap

        if not self.config.pipeline.overlap:
            return None
        num_trajectories = len(self.prompts) * self.config.rollout.group_size
        return Overlap(weights_digest=self.lineage.weights, num_trajectories=num_trajectories)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hands:
    """Who does the work while steps run."""

    pool: ReplicaPool
    beside: TrainingBeside | None = None
    """A training that has begun before its turn."""
    in_rounds: BackgroundTraining | None = None
    """A training that is up over all rounds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A piece of work that is done or not."""

    stage: Stage
    name: str
    is_done: Callable[[], bool]
    run: Callable[[Hands], str]
    """Does the work and says in a few words what came of it."""
    needs: Step | None = None
    """What must be done before."""
    skip_without_needs: bool = False
    """Whether that is no error but a reason to leave this step out."""
    check: Callable[[], None] = lambda: None
    """Raises if what is done is not good enough to go on with."""

    def lacks_needs(self) -> bool:
        """Whether what must be done before is not."""
        return self.needs is not None and not self.needs.is_done()

    def check_needs(self, store: RunStore) -> None:
        """Refuse to begin too early.

        Raises:
            StageError: Names the step that is missing.
        """
        if self.needs and self.lacks_needs():
            raise StageError(
                f"Cannot {self.name}: the stage before it, {self.needs.name}, is not complete in "
                f"{store} with these settings.",
                f"Run `drift-ray {self.needs.stage}` first, or `drift-ray run` for everything.",
            )


def steps_of(inputs: RunInputs) -> list[Step]:
    """All steps of a run, in order.

    The reference is evaluated right after the rollouts, while its replicas are up; before them
    where the replicas will have loaded other policies then.
    """
    if inputs.rounds:
        in_rounds = _rounds(inputs)
        return [
            *_evaluations(inputs, REFERENCE, needs=None),
            in_rounds,
            *_evaluations(inputs, TRAINED, needs=in_rounds),
        ]
    sampled = _sampling(inputs)
    weighed = _weighing(inputs, needs=sampled)
    trained = _training(inputs, needs=weighed)
    return [
        sampled,
        *_evaluations(inputs, REFERENCE, needs=None),
        weighed,
        trained,
        *_evaluations(inputs, TRAINED, needs=trained),
    ]


def _sampling(inputs: RunInputs) -> Step:
    from drift_ray.rollout import stage as rollout

    config, store = inputs.config, inputs.store
    parts = rollout.plan(config, inputs.lineage, inputs.prompts)

    def sample(hands: Hands) -> str:
        with hands.beside.rollouts() if hands.beside else nullcontext():
            totals = rollout.run(store, hands.pool, config, parts)
        num = totals.committed.num_trajectories
        return f"{num:,} trajectories, {totals} once the engines were up"

    return Step(
        stage=Stage.ROLLOUT,
        name="rollout",
        is_done=lambda: parts.is_done(store, max_failed_frac=config.rollout.max_failed_frac),
        run=sample,
    )


def _weighing(inputs: RunInputs, *, needs: Step) -> Step:
    from drift_ray.weighting import stage as weighting
    from drift_ray.weighting.metrics import weights_metrics
    from drift_ray.weighting.table import print_summary

    config, store, lineage = inputs.config, inputs.store, inputs.lineage

    def weigh(hands: Hands) -> str:
        _make_room(config, hands.pool)
        summary = weighting.run(store, config, lineage)
        print_summary(summary)
        with weights_metrics(str(store), summary):
            weighting.check(store, config.weighting)
        ess_frac = summary["ess_frac"]["mean"] or 0.0
        return (
            f"effective sample size {ess_frac:.0%} of a group, "
            f"{summary['all_failed_frac']:.1%} of the groups all failed"
        )

    return Step(
        stage=Stage.WEIGH,
        name="weigh",
        is_done=lambda: weighting.is_done(store, config, lineage),
        run=weigh,
        needs=needs,
        check=lambda: weighting.check(store, config.weighting),
    )


def _training(inputs: RunInputs, *, needs: Step) -> Step:
    from drift_ray.training import stage as training
    from drift_ray.training.metric_log import publish_metrics
    from drift_ray.weighting import stage as weighting

    config, store, digest = inputs.config, inputs.store, inputs.lineage.model

    def train(hands: Hands) -> str:
        weighting.check(store, config.weighting)
        _make_room(config, hands.pool)
        if hands.beside:
            summary = hands.beside.result()
        else:
            summary = training.run(config, store, digest=digest, beside=inputs.overlap)
        publish_metrics(store, digest)
        return f"{summary['num_steps']} steps on {summary['num_samples']:,} trajectories"

    return Step(
        stage=Stage.TRAIN,
        name="train",
        is_done=lambda: training.is_done(store, digest=digest),
        run=train,
        needs=needs,
        # Of a training beside the rollouts whose driver died at the very end.
        check=lambda: publish_metrics(store, digest),
    )


def _rounds(inputs: RunInputs) -> Step:
    from drift_ray import rounds
    from drift_ray.training import stage as training
    from drift_ray.training.metric_log import publish_metrics

    config, store, digest = inputs.config, inputs.store, inputs.lineage.model

    def run(hands: Hands) -> str:
        assert hands.in_rounds is not None
        summary = rounds.run(
            store, hands.pool, hands.in_rounds, config, inputs.prompts, inputs.rounds
        )
        publish_metrics(store, digest)
        return (
            f"{summary['num_steps']} steps in {len(inputs.rounds)} rounds on "
            f"{summary['num_samples']:,} trajectories"
        )

    return Step(
        stage=Stage.TRAIN,
        name="rounds",
        is_done=lambda: (
            training.is_done(store, digest=digest)
            and all(rounds.is_done(store, each) for each in inputs.rounds)
        ),
        run=run,
        check=lambda: publish_metrics(store, digest),
    )


def _make_room(config: RunConfig, pool: ReplicaPool) -> None:
    if not replicas_can_stay(config):
        pool.stop()


def _evaluations(inputs: RunInputs, name: str, *, needs: Step | None) -> list[Step]:
    return [_evaluation(inputs, name, each, needs=needs) for each in inputs.benchmarks.values()]


def _evaluation(inputs: RunInputs, name: str, benchmark: Benchmark, *, needs: Step | None) -> Step:
    from drift_ray.evaluation import stage as evaluation

    store, lineage, policy = inputs.store, inputs.lineage, inputs.policies[name]

    def evaluate(hands: Hands) -> str:
        metrics = evaluation.run(
            store, hands.pool, inputs.config, lineage, benchmark, name=name, policy=policy
        )
        first, last = metrics["success_at"][0], metrics["success_at"][-1]
        num_missing = metrics["missing"]["num_missing"]
        missing = f", {num_missing:,} trajectories missing" if num_missing else ""
        rates = (f"success@{row['k']} {row['estimate']:.3f}" for row in (first, last))
        return ", ".join(rates) + missing

    return Step(
        stage=Stage.EVALUATE,
        name=f"evaluate {name}" + (f" on {benchmark.name}" if benchmark.name else ""),
        is_done=lambda: evaluation.is_done(
            store, lineage, benchmark.name, name=name, policy=policy
        ),
        run=evaluate,
        needs=needs,
        skip_without_needs=True,
    )
