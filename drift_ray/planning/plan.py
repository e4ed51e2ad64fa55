"""The steps of a run as they stand: done, due or not possible, and what is left of them."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Literal

from drift_ray.cluster import logical_cpus
from drift_ray.config import RunConfig
from drift_ray.lineage import check_run
from drift_ray.pipeline import Pipeline
from drift_ray.planning.figures import Figures
from drift_ray.rollout.sampling import PartPlan
from drift_ray.steps import RunInputs, Stage, steps_of
from drift_ray.store import RunStore

State = Literal["done", "due", "left out", "blocked"]
"""``left out``: there is no model of these settings to evaluate; ``blocked``: a stage before this
one is not complete and was not asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """What a sampling step has and lacks."""

    num_parts: int
    num_parts_left: int
    num_trajectories: int
    num_trajectories_left: int
    num_failed: int
    """Trajectories of the committed parts that failed; ``--retry-failed`` samples them again."""
    max_tokens_left: int
    """Sampled tokens at most, if every turn of every trajectory is played and takes its limit."""
    expected_tokens_left: int | None
    """By the mean of trajectories sampled before; None where there are none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedStep:
    """One step of a run."""

    name: str
    stage: str
    state: State
    needs: str | None
    """The step before it that is missing, if one is."""
    sampling: Sampling | None
    """None of a step that samples nothing."""
    expected_s: float | None
    """Time it takes, by the figures of a run before; None where these say nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a command would do."""

    run: str
    """The run directory, without a login."""
    steps: list[PlannedStep]
    resources: dict[str, Any]
    """What the cluster is asked for."""

    @property
    def is_possible(self) -> bool:
        """Whether every step that was asked for is done or can be."""
        return all(step.state != "blocked" for step in self.steps)

    def as_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def make_plan(pipeline: Pipeline, stages: Collection[Stage], figures: Figures) -> Plan:
    """Look at the run directory and plan; nothing is written and no cluster is started.

    Args:
        pipeline: The run.
        stages: What is asked for.
        figures: Of this or another run, for estimates.

    Raises:
        FingerprintError: The run directory holds trajectories of other settings.
        DataError: A committed file is damaged.
    """
    check_run(pipeline.store, pipeline.lineage)
    sampled = sampled_parts(pipeline.inputs)
    steps: list[PlannedStep] = []
    due: set[str] = set()
    for step in steps_of(pipeline.inputs):
        if step.stage not in stages:
            continue
        needs = step.needs
        missing = needs.name if needs and needs.name not in due and step.lacks_needs() else None
        state: State
        if missing:
            state = "left out" if step.skip_without_needs else "blocked"
        else:
            state = "done" if step.is_done() else "due"
        if state == "due":
            due.add(step.name)
        parts = sampled.get(step.name)
        left = _sampling(pipeline.store, parts, figures, step.name) if parts else None
        steps.append(
            PlannedStep(
                name=step.name,
                stage=step.stage.value,
                state=state,
                needs=missing,
                sampling=left,
                expected_s=_expected_s(step.stage, left, figures) if state == "due" else None,
            )
        )
    return Plan(run=str(pipeline.store), steps=steps, resources=resources(pipeline.config, stages))


def sampled_parts(inputs: RunInputs) -> dict[str, PartPlan]:
    """The parts of every step that samples once, whether done or not, by the step's name."""
    from drift_ray.evaluation import stage as evaluation
    from drift_ray.rollout import stage as rollout

    config, lineage = inputs.config, inputs.lineage
    found = {} if inputs.rounds else {"rollout": rollout.plan(config, lineage, inputs.prompts)}
    for name, policy in inputs.policies.items():
        for each in inputs.benchmarks.values():
            step = f"evaluate {name}" + (f" on {each.name}" if each.name else "")
            found[step] = evaluation.plan(config, lineage, each, name=name, policy=policy)
    return found


def resources(config: RunConfig, stages: Collection[Stage]) -> dict[str, Any]:
    """What the cluster is asked for by these stages: CPUs, GPUs and labels of each process."""
    wanted: dict[str, Any] = {}
    for name, section, num, needed_by in (
        ("replicas", config.replicas, config.replicas.num_replicas, {"rollout", "evaluate"}),
        ("training_workers", config.training, config.training.num_workers, {"train"}),
    ):
        if needed_by & set(stages):
            wanted[name] = {
                "min": num.min,
                "max": num.max,
                "num_cpus": section.num_cpus,
                "num_gpus": section.num_gpus,
                "resources": dict(section.resources),
                "label_selector": dict(section.label_selector),
            }
    wanted["cluster"] = "RAY_ADDRESS" if os.environ.get("RAY_ADDRESS") else "a private Ray here"
    wanted["num_cpus_at_once"] = logical_cpus(config)
    return wanted


def _sampling(store: RunStore, parts: PartPlan, figures: Figures, step: str) -> Sampling:
    sizes = {part.name: len(part.prompts) for part in parts}
    there = parts.committed(store) & sizes.keys()
    play, sampling = parts.play, parts.play.sampling
    num_left = sum(sizes[name] for name in sizes.keys() - there) * play.group_size
    longest = play.environment.max_turns * sampling.max_tokens
    if sampling.max_tokens_per_traj is not None:
        longest = min(longest, sampling.max_tokens_per_traj)
    mean = figures.tokens_of(step)
    return Sampling(
        num_parts=len(sizes),
        num_parts_left=len(sizes) - len(there),
        num_trajectories=sum(sizes.values()) * play.group_size,
        num_trajectories_left=num_left,
        num_failed=parts.num_failed(store, there),
        max_tokens_left=num_left * longest,
        expected_tokens_left=None if mean is None else round(num_left * mean),
    )


def _expected_s(stage: Stage, sampling: Sampling | None, figures: Figures) -> float | None:
    if sampling is not None:
        tokens, rate = sampling.expected_tokens_left, figures.tokens_per_s
        return None if tokens is None or rate is None else tokens / rate
    if stage is Stage.TRAIN and figures.step_s is not None and figures.num_steps is not None:
        return figures.step_s * figures.num_steps
    return None
