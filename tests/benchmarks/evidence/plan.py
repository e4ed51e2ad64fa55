"""What is tried, on which tasks, with which settings: all of it data.

Every experiment is a run of the real stages, told apart by dotted settings over the demo's. First
every method is tuned on validation prompts: as many trials for each, of its learning rate, its
number of epochs and, for DRIFT's weights, β. Then it runs with the best of them for every seed, and
only then are test prompts looked at. Ablations change one setting of the DRIFT that was found.

The time on two cores, in CPU seconds, from those of a smoke run (7 ms to sample a trajectory of
addition, 6.5 ms to train on it once; those of chain_sum are half as long again):

                                                           addition  chain_sum
    samples    4 seeds                                    x   7 =  30        45
    offline    4 methods x (4 trials + 3 seeds)           x  11 = 310       460
    3 rounds   4 + 3                                      x  18 = 130       190
    on-policy  4 + 3                                      x 165 = 1,160   1,730
    ablations  (12, 5) x 3 seeds, one of 4 x the prompts  x  22 = 930       700
               samples of other sizes                            = 130      170
    evaluating 24 trials x 5 + (57, 36) policies x 11            = 750      770
    teaching   500 steps                                                    400
    in all                                                      3,440     4,470

and 80 minutes, since a core now and then waits for the other. Few prompts are on purpose: with
some hundreds every method ends near 1.

What is not on the scale: starting engines, Ray and workers costs every method the same once and is
left out; offline methods share the trajectories of a seed, yet each is charged for all of them;
CPU seconds are of one machine, and wall times of offline trainings of two that went on at once.
Tuning is charged to nobody. Sampling that was killed, and went on later, is charged from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from drift_ray.lineage import digest

Settings = Mapping[str, Any]
"""Dotted names of settings and their values."""

DEMO = "jobs/configs/demo.yaml"
ON_POLICY = "jobs/configs/on_policy.yaml"
DRIFT = "drift"
REFERENCE = "reference"
PEER = "trl_grpo"
TUNING_SEED = 1000
TUNE, FINAL, ABLATION = "tune", "final", "ablation"
TRAIN, MORE, VALIDATION, TEST = "train", "more", "validation", "test"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """How large everything is."""

    num_train: int = 128
    num_more: int = 512
    """Training prompts of the ablation that has more of them: the others and these."""
    num_validation: int = 200
    num_test: int = 400
    num_samples: int = 2
    """Sampled trajectories a held-out prompt, beside the greedy one."""
    seeds: tuple[int, ...] = (0, 1, 2)
    num_ablation_seeds: int = 3
    num_trials: int = 4
    """Of each method's tuning."""
    num_rounds: int = 24
    """Of on-policy RL."""
    checkpoints: tuple[int, ...] = (4, 8, 16)
    """Rounds of it that are evaluated, besides the last."""
    reasoning_steps: int = 500
    """With which the reasoning-gym model is taught."""


FULL = Scale()
SMOKE = Scale(
    num_train=64,
    num_more=96,
    num_validation=24,
    num_test=24,
    num_samples=2,
    seeds=(0, 1),
    num_ablation_seeds=1,
    num_trials=1,
    num_rounds=3,
    checkpoints=(1,),
    reasoning_steps=20,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A way to learn."""

    name: str
    label: str
    config: str = DEMO
    settings: Settings = field(default_factory=dict)
    trials: tuple[Settings, ...]
    """What tuning chooses from, likeliest first."""
    num_rounds: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A task, and the name of the model that is to learn it."""

    name: str
    label: str
    grader: str
    ablations: tuple[str, ...]
    """Names in ``ABLATIONS``."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Experiment:
    """One run: samples, weights, training and evaluation."""

    task: str
    phase: str
    method: str
    variant: str
    """Tells apart what a phase tries of a method."""
    seed: int
    config: str
    settings: Settings
    num_rounds: int = 1
    """0: the policy is evaluated as it is."""
    checkpoints: tuple[int, ...] = ()
    """Rounds whose policies are evaluated too."""
    train: str = TRAIN
    """Which prompts it is trained on."""

    @property
    def folder(self) -> str:
        """Of its run, below the folder of the task: another one for other settings."""
        made_of = digest(self.config, dict(self.settings))[:8]
        return f"{self.phase}/{self.method}/{self.variant}-{made_of}/seed-{self.seed}"

    @property
    def prompts(self) -> str:
        """Which prompts it is evaluated on."""
        return VALIDATION if self.phase == TUNE else TEST


def _trial(rate: float, epochs: int, beta: float | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"training.learning_rate": rate, "training.num_epochs": epochs}
    return found if beta is None else found | {"weighting.beta": beta}


_PLAIN = (_trial(3e-4, 2), _trial(1e-3, 1), _trial(1e-3, 2), _trial(1e-4, 2))
_WITH_BETA = (
    _trial(3e-4, 2, 0.1),
    _trial(1e-3, 1, 0.1),
    _trial(1e-3, 2, 0.3),
    _trial(1e-4, 2, 0.3),
)
# A second epoch on a round would not be on-policy any more.
_BY_GROUP = (_trial(3e-4, 1), _trial(1e-3, 1), _trial(1e-4, 1), _trial(3e-5, 1))

MORE_PROMPTS = "more prompts"
ABLATIONS: Mapping[str, Settings] = {
    "beta 0.03": {"weighting.beta": 0.03},
    "beta 1": {"weighting.beta": 1.0},
    "gamma 0.5": {"weighting.gamma": 0.5},
    "gamma 1": {"weighting.gamma": 1.0},
    "success only": {"weighting.method": "success_only"},
    "all-failed drop": {"weighting.all_failed": "drop"},
    "all turns, mean": {"training.loss_turns": "all"},
    "all turns, sum": {"training.loss_turns": "all", "training.token_reduction": "sum"},
    "learning rate 3e-5": {"training.learning_rate": 3e-5},
    "4 trajectories": {"rollout.group_size": 4},
    "16 trajectories": {"rollout.group_size": 16},
    MORE_PROMPTS: {},
}
"""Each changes one thing of DRIFT as it was tuned."""


TASKS = (
    Task(
        name="addition", label="two-digit addition", grader="reference", ablations=tuple(ABLATIONS)
    ),
    Task(
        name="chain_sum",
        label="reasoning-gym chain_sum",
        grader="reasoning_gym",
        ablations=(
            "success only",
            "learning rate 3e-5",
            "all turns, mean",
            "16 trajectories",
            MORE_PROMPTS,
        ),
    ),
)


def methods(scale: Scale) -> tuple[Method, ...]:
    """All methods, the reference policy aside."""
    third = scale.num_train // 3
    return (
        Method(
            name="sft",
            label="SFT on everything",
            settings={"weighting.method": "uniform"},
            trials=_PLAIN,
        ),
        Method(
            name="sft_successes",
            label="SFT on successes",
            settings={"weighting.method": "success_only"},
            trials=_PLAIN,
        ),
        Method(
            name="single_turn",
            label="single-turn DRIFT",
            settings={"weighting.method": "single_turn"},
            trials=_WITH_BETA,
        ),
        Method(name=DRIFT, label="DRIFT", trials=_WITH_BETA),
        Method(
            name="drift_rounds",
            label="DRIFT in 3 rounds",
            settings={"rounds.num_rounds": 3, "rounds.prompts_per_round": third},
            trials=_WITH_BETA,
            num_rounds=3,
        ),
        Method(
            name="on_policy",
            label="on-policy RL",
            config=ON_POLICY,
            settings={
                "rounds.num_rounds": scale.num_rounds,
                "rounds.prompts_per_round": min(64, scale.num_train),
            },
            trials=_BY_GROUP,
            num_rounds=scale.num_rounds,
        ),
    )


LABELS: Mapping[str, str] = {
    REFERENCE: "reference policy",
    **{each.name: each.label for each in methods(FULL)},
    PEER: "TRL's GRPO",
}
"""What methods are called in tables and plots."""


def tuning(task: Task, scale: Scale) -> list[Experiment]:
    """The trials of every method: as many of each."""
    return [
        _experiment(task, TUNE, method, f"trial-{number}", TUNING_SEED, trial)
        for method in methods(scale)
        for number, trial in enumerate(method.trials[: scale.num_trials])
    ]


def finals(task: Task, scale: Scale, best: Mapping[str, Settings]) -> list[Experiment]:
    """The reference policy, and every method with the settings that were best, for every seed."""
    references = [
        Experiment(
            task=task.name,
            phase=FINAL,
            method=REFERENCE,
            variant="best",
            seed=seed,
            config=DEMO,
            settings={},
            num_rounds=0,
        )
        for seed in scale.seeds
    ]
    return references + [
        replace(
            _experiment(task, FINAL, method, "best", seed, best[method.name]),
            checkpoints=_checkpoints(method, scale),
        )
        for method in methods(scale)
        for seed in scale.seeds
    ]


def ablations(task: Task, scale: Scale, best: Mapping[str, Settings]) -> list[Experiment]:
    """DRIFT with one setting changed."""
    (drift,) = (each for each in methods(scale) if each.name == DRIFT)
    return [
        replace(
            _experiment(
                *(task, ABLATION, drift, name.replace(" ", "_"), seed),
                {**best[DRIFT], **ABLATIONS[name]},
            ),
            train=MORE if name == MORE_PROMPTS else TRAIN,
        )
        for name in task.ablations
        for seed in scale.seeds[: scale.num_ablation_seeds]
    ]


def _checkpoints(method: Method, scale: Scale) -> tuple[int, ...]:
    if method.num_rounds <= 3:
        return tuple(range(1, method.num_rounds))
    return tuple(each for each in scale.checkpoints if each < method.num_rounds)


def _experiment(
    task: Task, phase: str, method: Method, variant: str, seed: int, settings: Settings
) -> Experiment:
    return Experiment(
        task=task.name,
        phase=phase,
        method=method.name,
        variant=variant,
        seed=seed,
        config=method.config,
        settings={**method.settings, **settings},
        num_rounds=method.num_rounds,
    )
