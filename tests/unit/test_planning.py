"""What a dry run says: taken from the run directory and from figures of runs before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from drift_ray.errors import FingerprintError
from drift_ray.lineage import claim_run
from drift_ray.pipeline import Pipeline, Stage
from drift_ray.planning.figures import Figures, read_figures
from drift_ray.planning.plan import Plan, make_plan, sampled_parts
from drift_ray.planning.table import plan_table
from drift_ray.schema import trajectory_table
from drift_ray.store import METRICS_FILE, STATUS_FILE, RunStore
from tests.unit.scripted import run_config, trajectory

ALL = frozenset(Stage)


def pipeline(folder: Path, *overrides: str) -> Pipeline:
    return Pipeline(run_config(folder, *overrides))


def commit(run: Pipeline, step: str, num_parts: int) -> None:
    """Write the first parts of a sampling step, one trajectory of each prompt."""
    claim_run(run.store, run.config, run.lineage)
    for part in list(sampled_parts(run.inputs)[step])[:num_parts]:
        rows = trajectory_table([trajectory(prompt.prompt_id) for prompt in part.prompts])
        run.store.write_table(part.name, rows)


def states(plan: Plan) -> dict[str, str]:
    return {step.name: step.state for step in plan.steps}


def test_a_new_run(tmp_path: Path) -> None:
    plan = make_plan(pipeline(tmp_path), ALL, Figures())
    assert states(plan) == dict.fromkeys(
        ["rollout", "evaluate reference", "weigh", "train", "evaluate trained"], "due"
    )
    sampling = plan.steps[0].sampling
    assert sampling is not None
    assert (sampling.num_parts, sampling.num_parts_left) == (3, 3)  # 5 prompts, 2 a part
    assert (sampling.num_trajectories, sampling.num_trajectories_left) == (10, 10)
    assert sampling.max_tokens_left == 10 * 5 * 512  # trajectories, turns, tokens a turn
    assert sampling.expected_tokens_left is None
    assert {step.expected_s for step in plan.steps} == {None}


def test_a_limit_of_the_trajectory_counts(tmp_path: Path) -> None:
    run = pipeline(tmp_path, "rollout.sampling.max_tokens_per_traj=100")
    sampling = make_plan(run, ALL, Figures()).steps[0].sampling
    assert sampling is not None
    assert sampling.max_tokens_left == 10 * 100


def test_what_is_there_is_not_due(tmp_path: Path) -> None:
    run = pipeline(tmp_path)
    commit(run, "rollout", 2)
    figures = Figures(tokens_per_trajectory={"rollout": 30.0}, tokens_per_s=20.0)
    begun = make_plan(run, ALL, figures).steps[0]
    assert begun.sampling is not None
    assert (begun.state, begun.sampling.num_parts_left) == ("due", 1)
    assert begun.sampling.num_trajectories_left == 2
    assert begun.sampling.expected_tokens_left == 60
    assert begun.expected_s == pytest.approx(3.0)
    commit(run, "rollout", 3)
    done = make_plan(pipeline(tmp_path), ALL, figures).steps[0]
    assert (done.state, done.expected_s) == ("done", None)
    assert done.sampling is not None
    assert done.sampling.max_tokens_left == 0


def test_a_stage_alone(tmp_path: Path) -> None:
    run = pipeline(tmp_path)
    plan = make_plan(run, {Stage.TRAIN}, Figures(step_s=0.5, num_steps=40))
    assert [(step.name, step.state, step.needs) for step in plan.steps] == [
        ("train", "blocked", "weigh")
    ]
    assert not plan.is_possible
    plan = make_plan(run, {Stage.EVALUATE}, Figures())
    assert states(plan) == {"evaluate reference": "due", "evaluate trained": "left out"}
    assert plan.is_possible


def test_time_of_a_training_like_the_last(tmp_path: Path) -> None:
    plan = make_plan(pipeline(tmp_path), ALL, Figures(step_s=0.5, num_steps=40))
    assert {step.name: step.expected_s for step in plan.steps}["train"] == pytest.approx(20.0)


def test_a_run_of_other_settings_is_refused(tmp_path: Path) -> None:
    run = pipeline(tmp_path)
    commit(run, "rollout", 1)
    with pytest.raises(FingerprintError, match="seed"):
        make_plan(pipeline(tmp_path, "seed=1"), ALL, Figures())


def test_resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    wishes = ["replicas.num_replicas={min: 2, max: 4}", "training.resources={trainer: 1}"]
    run = pipeline(tmp_path, *wishes)
    found = make_plan(run, ALL, Figures()).resources
    assert (found["replicas"]["min"], found["replicas"]["max"]) == (2, 4)
    assert found["training_workers"]["resources"] == {"trainer": 1.0}
    assert found["num_cpus_at_once"] == 4 + 2 + 2
    assert "training_workers" not in make_plan(run, {Stage.ROLLOUT}, Figures()).resources


@pytest.mark.parametrize("expected_s", [5.0, 7300.0])
def test_the_table_shows_all_steps(tmp_path: Path, expected_s: float) -> None:
    figures = Figures(
        tokens_per_trajectory={"rollout": 30.0}, tokens_per_s=300.0 / expected_s, step_s=1.0
    )
    console = Console(width=200, record=True)
    console.print(plan_table(make_plan(pipeline(tmp_path), ALL, figures)))
    shown = console.export_text()
    assert all(
        each in shown
        for each in (
            *("evaluate trained", "10 of 10", "about 300, at most 25,600", "not known"),
            "about 5 s" if expected_s == 5.0 else "about 2 h 01 min",
        )
    )


def metrics(store: RunStore) -> None:
    sampled: dict[str, Any] = {"stage": "rollout", "num_trajectories": 4, "num_sampled_tokens": 100}
    trained = {"stage": "training", "digest": "old", "step_s": 9.0, "num_steps": 9}
    store.append_metrics([sampled, sampled | {"num_sampled_tokens": 300}, trained])
    store.append_metrics([trained | {"digest": "new", "step_s": s, "num_steps": 2} for s in (1, 3)])


def test_figures_of_a_run(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    assert read_figures(store) == Figures()
    metrics(store)
    store.write_json(STATUS_FILE, {"tokens_per_s": 20.0})
    with open(tmp_path / METRICS_FILE, "a") as file:
        file.write('{"stage": "roll')  # of a writer that was killed
    figures = read_figures(store)
    assert figures == Figures(
        tokens_per_trajectory={"rollout": 50.0}, tokens_per_s=20.0, step_s=2.0, num_steps=2
    )
    assert figures.tokens_of("evaluate trained") == 50.0  # the best one knows
    assert Figures().tokens_of("rollout") is None
