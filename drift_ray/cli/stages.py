"""The commands that do work: every stage alone, or all of them."""

from __future__ import annotations

from collections.abc import Sequence

import click

from drift_ray.cli.commands import (
    CONFIG,
    OVERRIDES,
    RETRY_FAILED,
    command,
    configured,
    say,
    show,
)


@command(example="drift-ray run jobs/configs/demo.yaml run=runs/first weighting.beta=0.2")
@CONFIG
@OVERRIDES
def run(config: str, overrides: Sequence[str]) -> None:
    """All stages: rollout, weigh, train, evaluate before and after."""
    execute(config, overrides, None)


@command(example="drift-ray rollout jobs/configs/demo.yaml run=runs/first rollout.group_size=32")
@CONFIG
@OVERRIDES
@RETRY_FAILED
def rollout(config: str, overrides: Sequence[str], retry_failed: bool) -> None:
    """Sample trajectories from the frozen reference policy."""
    execute(config, overrides, "rollout", retry_failed=retry_failed)


@command(example="drift-ray weigh runs/first --beta 0.05,0.1,0.2 --gamma 0.8,0.9")
@click.argument("config", metavar="CONFIG.yaml|RUN")
@OVERRIDES
@click.option("--beta", metavar="B,B,…", help="Compare these; commit no weights.")
@click.option("--gamma", metavar="G,G,…", help="Compare these; commit no weights.")
def weigh(config: str, overrides: Sequence[str], beta: str | None, gamma: str | None) -> None:
    """Turn returns into importance weights, per prompt.

    A run directory in place of a configuration is weighed with the settings recorded in it. With
    --beta or --gamma: what each of these values, or each pair of them, would make of the
    trajectories.
    """
    if beta is None and gamma is None:
        execute(config, overrides, "weigh")
    else:
        _sweep(config, overrides, beta=_numbers(beta, "--beta"), gamma=_numbers(gamma, "--gamma"))


@command(example="drift-ray train jobs/configs/demo.yaml run=runs/first training.num_epochs=2")
@CONFIG
@OVERRIDES
def train(config: str, overrides: Sequence[str]) -> None:
    """Fine-tune on the weighted trajectories."""
    execute(config, overrides, "train")


@command(example="drift-ray evaluate jobs/configs/demo.yaml run=runs/first")
@CONFIG
@OVERRIDES
@RETRY_FAILED
def evaluate(config: str, overrides: Sequence[str], retry_failed: bool) -> None:
    """Success within k turns on held-out prompts, reference and trained model."""
    execute(config, overrides, "evaluate", retry_failed=retry_failed)


def execute(
    path: str, overrides: Sequence[str], stage: str | None, *, retry_failed: bool = False
) -> None:
    """Bring a stage, or with None all of them, up to date and print what came of it."""
    from drift_ray.evaluation.table import comparison_table, success_table
    from drift_ray.logs import log_to_stderr
    from drift_ray.pipeline import Pipeline, Stage
    from drift_ray.progress import console

    if not console.is_terminal:  # a job's log: one line for every part, too
        log_to_stderr()
    pipeline = Pipeline(configured(path, overrides))
    say(f"run directory: {pipeline.store}")
    stages = frozenset(Stage) if stage is None else frozenset({Stage(stage)})
    if retry_failed:
        num_parts = sum(map(pipeline.forget_failures, stages))
        say(f"{num_parts} parts with failures deleted")
    pipeline.run(stages)
    if stage in (None, "evaluate") and (metrics := pipeline.metrics()):
        show(success_table(metrics))
        for name, comparison in pipeline.comparisons().items():
            show(comparison_table(comparison, name=name))
    if stage is None:
        from drift_ray.report.render import try_report

        say(try_report(pipeline.store.url))
    say(f"results in {pipeline.store}")


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
