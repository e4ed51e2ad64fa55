"""The commands that go on with a run that is there: other verdicts, more samples, more replicas."""

from __future__ import annotations

from collections.abc import Sequence

import click

from drift_ray.cli.commands import OVERRIDES, RUN, command, speak_up


@command(example="drift-ray scale runs/first --replicas 8")
@RUN
@click.option("--replicas", type=click.IntRange(min=1), required=True, help="Replicas to have.")
def scale(run: str, replicas: int) -> None:
    """Give the sampling in a run more replicas, or fewer.

    Replicas join as soon as the cluster has room. Those that leave first finish what they play, or
    hand it back when replicas.drain_deadline_s is over.
    """
    from drift_ray.lineage import require_run
    from drift_ray.rollout.status import ask_to_scale
    from drift_ray.store import RunStore

    store = RunStore(run)
    require_run(store)
    ask_to_scale(store, replicas)
    click.echo(f"asked for {replicas} replicas; `drift-ray status {run}` shows them come and go")


@command(example="drift-ray rescore runs/first --grader '{name: numeric, rel_tol: 0.01}'")
@RUN
@OVERRIDES
@click.option(
    "--grader", required=True, help="A name, or a mapping such as '{name: numeric, rel_tol: 0.01}'."
)
@click.option("--name", help="Of the verdict table; the grader's name when omitted.")
@click.option("--retry-failed", is_flag=True, help="Grade again what could not be graded before.")
@click.option("--show", type=click.IntRange(min=0), default=20, help="Flipped verdicts to print.")
def rescore(
    run: str,
    overrides: Sequence[str],
    grader: str,
    name: str | None,
    retry_failed: bool,
    show: int,
) -> None:
    """Grade a run's trajectories anew, and say what that changes.

    Of run directory RUN. Needs neither GPU nor engine. The recorded verdicts stay; the new ones
    lie under verdicts/NAME and are weighed by with weighting.verdicts=NAME.
    """
    from drift_ray.lineage import recorded_config
    from drift_ray.rescoring.stage import default_name, first_failure, read_flips
    from drift_ray.rescoring.stage import rescore as rescore_run
    from drift_ray.rescoring.table import print_rescoring
    from drift_ray.store import RunStore

    recorded = recorded_config(run, overrides)
    config = recorded_config(run, [*overrides, f"task.grader={grader}"])
    name = name or default_name(config.task.grader)
    store = RunStore(run)
    summary = rescore_run(
        store,
        config,
        name=name,
        recorded_grader=recorded.task.grader,
        retry_failed=retry_failed,
    )
    speak_up()
    print_rescoring(summary, read_flips(store, name, show))
    if reason := first_failure(store, name):
        failures = store.path(f"verdicts/{name}/failures")
        click.echo(
            f"! without verdict, for example: {reason}; all of them are in {failures}, and "
            "--retry-failed grades them again"
        )
    click.echo(
        f"verdicts, flips and changed weights in {store.path(f'verdicts/{name}')}; weigh by them "
        f"with `drift-ray weigh … weighting.verdicts={name}`"
    )


@command(example="drift-ray topup runs/first --budget 2000 --below-ess 0.3")
@RUN
@OVERRIDES
@click.option(
    "--budget", type=click.IntRange(min=1), help="Trajectories at most; no limit when omitted."
)
@click.option(
    "--below-ess",
    type=click.FloatRange(0, 1),
    default=0.2,
    show_default=True,
    help="Prompts whose effective sample size is a smaller share of their group.",
)
def topup(run: str, overrides: Sequence[str], budget: int | None, below_ess: float) -> None:
    """Sample more of prompts with a low ESS, or that nobody solved.

    Every such prompt of run directory RUN gets up to rollout.group_size more trajectories. A round
    that was interrupted is finished as it was begun, whatever the options are now.
    """
    from drift_ray.lineage import recorded_config
    from drift_ray.pipeline import Pipeline

    pipeline = Pipeline(recorded_config(run, overrides))
    report = pipeline.topup(below_ess=below_ess, budget=budget)
    if report is None:
        click.echo(f"every prompt is solved and has an ESS of {below_ess:.0%} or more")
        return
    rate, since = report["ess_per_s"], " since it went on" if report["was_interrupted"] else ""
    click.echo(
        f"{report['num_trajectories']:,} more trajectories of {report['num_prompts']:,} prompts, "
        f"{report['num_newly_solved']:,} of these solved for the first time\n"
        f"effective trajectories of solved prompts: {report['ess_before']:,.1f} → "
        f"{report['ess_after']:,.1f}"
        + ("" if rate is None else f", {rate:.2f} per second of sampling{since}")
        + "\n`drift-ray weigh` weighs all of them"
    )
