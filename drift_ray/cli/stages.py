"""The commands that do work: every stage alone, or all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import click

from drift_ray.cli.commands import (
    AS_JSON,
    CONFIG,
    CONFIG_OR_RUN,
    OVERRIDES,
    RETRY_FAILED,
    command,
    configured,
    is_quiet,
    keep_stdout_for_json,
    print_json,
    say,
    show,
)
from drift_ray.errors import StageError

if TYPE_CHECKING:
    from drift_ray.pipeline import Pipeline, Stage

_STAGE_OPTIONS = (
    click.option(
        "--dry-run", is_flag=True, help="Show what is done and what would be; do nothing."
    ),
    click.option("--like", metavar="RUN", help="For --dry-run: estimate by figures of this run."),
    AS_JSON,
)


def _stage_options(function: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_STAGE_OPTIONS):
        function = option(function)
    return function


@command(example="drift-ray run builtin:demo run=runs/first weighting.beta=0.2")
@CONFIG
@OVERRIDES
@_stage_options
def run(config: str, overrides: Sequence[str], **how: Any) -> None:
    """All stages: rollout, weigh, train, evaluate before and after."""
    execute(config, overrides, None, **how)


@command(example="drift-ray rollout builtin:demo run=runs/first rollout.group_size=32")
@CONFIG
@OVERRIDES
@RETRY_FAILED
@_stage_options
def rollout(config: str, overrides: Sequence[str], **how: Any) -> None:
    """Sample trajectories from the frozen reference policy."""
    execute(config, overrides, "rollout", **how)


@command(example="drift-ray weigh runs/first --beta 0.05,0.1,0.2 --gamma 0.8,0.9")
@CONFIG_OR_RUN
@OVERRIDES
@click.option("--beta", metavar="B,B,…", help="Compare these; commit no weights.")
@click.option("--gamma", metavar="G,G,…", help="Compare these; commit no weights.")
@_stage_options
def weigh(
    config: str, overrides: Sequence[str], beta: str | None, gamma: str | None, **how: Any
) -> None:
    """Turn returns into importance weights, per prompt.

    A run directory in place of a configuration is weighed with the settings recorded in it. With
    --beta or --gamma: what each of these values, or each pair of them, would make of the
    trajectories.
    """
    if beta is None and gamma is None:
        execute(config, overrides, "weigh", **how)
    elif any(how.values()):
        raise click.UsageError(
            "--beta and --gamma compare at once: leave out --dry-run and --json."
        )
    else:
        _sweep(config, overrides, beta=_numbers(beta, "--beta"), gamma=_numbers(gamma, "--gamma"))


@command(example="drift-ray train builtin:demo run=runs/first training.num_epochs=2")
@CONFIG
@OVERRIDES
@_stage_options
def train(config: str, overrides: Sequence[str], **how: Any) -> None:
    """Fine-tune on the weighted trajectories."""
    execute(config, overrides, "train", **how)


@command(example="drift-ray evaluate builtin:demo run=runs/first --json")
@CONFIG
@OVERRIDES
@RETRY_FAILED
@_stage_options
def evaluate(config: str, overrides: Sequence[str], **how: Any) -> None:
    """Success within k turns on held-out prompts, before and after."""
    execute(config, overrides, "evaluate", **how)


def execute(
    path: str,
    overrides: Sequence[str],
    stage: str | None,
    *,
    retry_failed: bool = False,
    dry_run: bool = False,
    like: str | None = None,
    as_json: bool = False,
) -> None:
    """Bring a stage, or with None all of them, up to date and print what came of it."""
    from drift_ray.logs import log_to_stderr
    from drift_ray.pipeline import Pipeline, Stage
    from drift_ray.progress import console

    if like and not dry_run:
        raise click.UsageError("--like is for --dry-run.")
    if as_json:
        keep_stdout_for_json()
    if not console.is_terminal and not is_quiet():  # a job's log: one line for every part, too
        log_to_stderr()
    pipeline = Pipeline(configured(path, overrides))
    stages = frozenset(Stage) if stage is None else frozenset({Stage(stage)})
    if dry_run:
        _show_plan(pipeline, stages, like=like, as_json=as_json)
        return
    say(f"run directory: {pipeline.store}")
    if retry_failed:
        num_parts = sum(map(pipeline.forget_failures, stages))
        say(f"{num_parts} parts with failures deleted")
    pipeline.run(stages)
    _show_results(pipeline, stages, as_json=as_json)
    if stage is None:
        from drift_ray.report.render import try_report

        say(try_report(pipeline.store.url))
    say(f"results in {pipeline.store}")


def _show_plan(
    pipeline: Pipeline, stages: Collection[Stage], *, like: str | None, as_json: bool
) -> None:
    from drift_ray.planning.figures import read_figures
    from drift_ray.planning.plan import make_plan
    from drift_ray.planning.table import plan_table
    from drift_ray.store import RunStore

    plan = make_plan(pipeline, stages, read_figures(RunStore(like) if like else pipeline.store))
    if as_json:
        print_json(plan.as_json())
    else:
        show(plan_table(plan))
    if not plan.is_possible:
        click.get_current_context().exit(StageError.exit_code)


def _show_results(pipeline: Pipeline, stages: Collection[Stage], *, as_json: bool) -> None:
    from drift_ray.evaluation.table import comparison_table, success_table

    evaluated = "evaluate" in stages
    metrics = pipeline.metrics() if evaluated else {}
    comparisons = pipeline.comparisons() if metrics else {}
    if as_json:
        run = str(pipeline.store)
        print_json({"run": run, "metrics": metrics, "comparisons": comparisons})
    elif metrics:
        show(success_table(metrics))
        for name, comparison in comparisons.items():
            show(comparison_table(comparison, name=name))


def _sweep(
    path: str, overrides: Sequence[str], *, beta: Sequence[float], gamma: Sequence[float]
) -> None:
    from drift_ray.cluster import prepare_ray, ray_cluster
    from drift_ray.store import RunStore
    from drift_ray.weighting.passes import rollout_parts
    from drift_ray.weighting.sweep import SWEEP_FILE, sweep, sweep_configs
    from drift_ray.weighting.table import sweep_table

    config = configured(path, overrides)
    store = RunStore(config.run)
    weightings = sweep_configs(config.weighting, betas=beta, gammas=gamma)
    parts = rollout_parts(store)
    prepare_ray()
    with ray_cluster(config):
        rows = sweep(store, parts, weightings)
    show(sweep_table(rows))
    say(f"details in {store.path(SWEEP_FILE)}")


def _numbers(text: str | None, option: str) -> list[float]:
    try:
        return [] if text is None else [float(each) for each in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of numbers", param_hint=option) from None
