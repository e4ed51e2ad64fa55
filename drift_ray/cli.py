"""The ``drift-ray`` command. Heavy imports happen inside the commands, so help is instant."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from drift_ray import __version__
from drift_ray.errors import EXIT_INTERRUPTED, DriftRayError

if TYPE_CHECKING:
    from drift_ray.config import RunConfig

_ARGUMENTS = (
    click.argument("config", type=click.Path(dir_okay=False), metavar="CONFIG.yaml"),
    click.argument("overrides", nargs=-1, metavar="[KEY.KEY=VALUE]..."),
)

_RETRY_FAILED = click.option(
    "--retry-failed", is_flag=True, help="First delete the parts that have failed trajectories."
)


def _with_config(command: Callable[..., None]) -> Callable[..., None]:
    for argument in reversed(_ARGUMENTS):
        command = argument(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="drift-ray")
def cli() -> None:
    """DRIFT on Ray: multi-turn rollouts, importance weights, weighted fine-tuning.

    Every command takes a YAML file and dotted overrides, for example

        drift-ray run jobs/configs/demo.yaml run=runs/first weighting.beta=0.2

    Finished work is skipped, interrupted work continues: run the same command again.
    """


@cli.command()
@_with_config
def run(config: str, overrides: Sequence[str]) -> None:
    """All stages: rollout, weigh, train, evaluate before and after."""
    _run(config, overrides, None)


@cli.command()
@_with_config
@_RETRY_FAILED
def rollout(config: str, overrides: Sequence[str], retry_failed: bool) -> None:
    """Sample trajectories from the frozen reference policy."""
    _run(config, overrides, "rollout", retry_failed=retry_failed)


@cli.command()
@click.argument("config", metavar="CONFIG.yaml|RUN")
@_ARGUMENTS[1]
@click.option("--beta", metavar="B,B,…", help="Compare these; commit no weights.")
@click.option("--gamma", metavar="G,G,…", help="Compare these; commit no weights.")
def weigh(config: str, overrides: Sequence[str], beta: str | None, gamma: str | None) -> None:
    """Turn returns into importance weights, per prompt.

    A run directory in place of a configuration is weighed with the settings recorded in it. With
    --beta or --gamma: what each of these values, or each pair of them, would make of the
    trajectories.
    """
    if beta is None and gamma is None:
        _run(config, overrides, "weigh")
    else:
        _sweep(config, overrides, beta=_numbers(beta, "--beta"), gamma=_numbers(gamma, "--gamma"))


@cli.command()
@_with_config
def train(config: str, overrides: Sequence[str]) -> None:
    """Fine-tune on the weighted trajectories."""
    _run(config, overrides, "train")


@cli.command()
@_with_config
@_RETRY_FAILED
def evaluate(config: str, overrides: Sequence[str], retry_failed: bool) -> None:
    """Success within k turns on held-out prompts, reference and trained model."""
    _run(config, overrides, "evaluate", retry_failed=retry_failed)


@cli.command()
@click.argument("run_a", metavar="RUN_A[:MODEL]")
@click.argument("run_b", metavar="RUN_B[:MODEL]")
@click.option("--json", "as_json", is_flag=True, help="Print all of it, with ids, as JSON.")
def compare(run_a: str, run_b: str, as_json: bool) -> None:
    """How the model of run directory RUN_B differs from that of RUN_A on the same prompts.

    MODEL is reference or trained; trained when omitted. Paired by prompt: difference of success@k
    with its 95 % interval and p-value, prompts won and lost.
    """
    _compare(run_a, run_b, as_json=as_json)


@cli.command()
@click.argument("run")
@click.option(
    "--max-trajectories",
    type=click.IntRange(min=1),
    help="Rollouts in the page, and as many evaluated ones; 10,000 when omitted.",
)
def report(run: str, max_trajectories: int | None) -> None:
    """Write report.html into run directory RUN: one page with figures, plots and trajectories.

    `drift-ray run` does so at its end. The page needs no network and may be sent around.
    """
    from drift_ray.report.render import write_report
    from drift_ray.report.selection import MAX_TRAJECTORIES

    written = write_report(run, max_trajectories or MAX_TRAJECTORIES)
    click.echo(str(written))


@cli.command()
@click.argument("run")
@click.option(
    "--source",
    default="rollouts",
    show_default=True,
    help="Or a task or benchmark and a model, such as addition/trained.",
)
@click.option("--prompt", default="", help="Part of the prompt's id, question or gold.")
@click.option("--outcome", type=click.Choice(["solved", "failed"]), help="Both when omitted.")
@click.option("--limit", type=click.IntRange(min=0), help="Trajectories at most; all when omitted.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(
    run: str, source: str, prompt: str, outcome: str | None, limit: int | None, as_json: bool
) -> None:
    """Summary of run directory RUN, then its trajectories with verdicts, return and weight."""
    from drift_ray.progress import console
    from drift_ray.report import terminal
    from drift_ray.report.search import Search

    search = Search(text=prompt, solved=None if outcome is None else outcome == "solved")
    if as_json:
        click.echo(terminal.as_json(run, search, source=source, limit=limit))
    else:
        terminal.page_through(run, search, source=source, limit=limit, console=console)


@cli.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print the status file as it is.")
def status(run: str, as_json: bool) -> None:
    """How the sampling in run directory RUN goes: progress, rates, replicas, time to go."""
    from drift_ray.rollout.status import read_status
    from drift_ray.rollout.status_table import print_status
    from drift_ray.store import STATUS_FILE, RunStore

    store = RunStore(run)
    now = read_status(store)
    if as_json:
        click.echo(json.dumps(store.read_json(STATUS_FILE)))
    else:
        print_status(now)


@cli.command()
@click.argument("run")
@click.option("--replicas", type=click.IntRange(min=1), required=True, help="Replicas to have.")
def scale(run: str, replicas: int) -> None:
    """Give the sampling in run directory RUN more replicas, or fewer.

    Replicas join as soon as the cluster has room. Those that leave first finish what they play, or
    hand it back when replicas.drain_deadline_s is over.
    """
    from drift_ray.rollout.status import ask_to_scale
    from drift_ray.store import RunStore

    ask_to_scale(RunStore(run), replicas)
    click.echo(f"asked for {replicas} replicas; `drift-ray status {run}` shows them come and go")


@cli.command()
@click.argument("run")
@_ARGUMENTS[1]
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
    """Grade the trajectories in run directory RUN anew, and say what that changes.

    Needs neither GPU nor engine. The recorded verdicts stay; the new ones lie under verdicts/NAME
    and are weighed by with weighting.verdicts=NAME.
    """
    from drift_ray.lineage import recorded_config
    from drift_ray.rescoring.stage import default_name, read_flips
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
    print_rescoring(summary, read_flips(store, name, show))
    click.echo(
        f"verdicts, flips and changed weights in {store.path(f'verdicts/{name}')}; weigh by them "
        f"with `drift-ray weigh … weighting.verdicts={name}`"
    )


@cli.command()
@click.argument("run")
@_ARGUMENTS[1]
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
    """Sample more in run directory RUN: of prompts with a low ESS, or that nobody solved.

    Every such prompt gets up to rollout.group_size more trajectories. A round that was interrupted
    is finished as it was begun, whatever the options are now.
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


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, with errors already printed.

    Exit codes: 0 done; 2 wrong usage or configuration; 3 prompts; 4 model; 5 data; 6 run directory
    of other settings; 7 storage; 8 a stage failed; 130 interrupted.
    """
    try:
        cli.main(args=None if args is None else list(args), standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo(
            "\nInterrupted. What is committed stays: run the same command to go on.", err=True
        )
        return EXIT_INTERRUPTED
    except DriftRayError as error:
        click.secho(f"error: {error}", fg="red", err=True)
        return error.exit_code
    return 0


def _run(
    path: str, overrides: Sequence[str], stage: str | None, *, retry_failed: bool = False
) -> None:
    from drift_ray.evaluation.table import comparison_table, success_table
    from drift_ray.logs import log_to_stderr
    from drift_ray.pipeline import Pipeline, Stage
    from drift_ray.progress import console

    if not console.is_terminal:  # a job's log: one line for every part, too
        log_to_stderr()
    pipeline = Pipeline(_load(path, overrides))
    click.echo(f"run directory: {pipeline.store}")
    stages = frozenset(Stage) if stage is None else frozenset({Stage(stage)})
    if retry_failed:
        num_parts = sum(map(pipeline.forget_failures, stages))
        click.echo(f"{num_parts} parts with failures deleted")
    pipeline.run(stages)
    if stage in (None, "evaluate") and (metrics := pipeline.metrics()):
        console.print(success_table(metrics))
        for name, comparison in pipeline.comparisons().items():
            console.print(comparison_table(comparison, name=name))
    if stage is None:
        from drift_ray.report.render import try_report

        click.echo(try_report(pipeline.store.url))
    click.echo(f"results in {pipeline.store}")


def _load(path: str, overrides: Sequence[str]) -> RunConfig:
    """The settings of a configuration file, or those that a run directory was last used with."""
    from drift_ray.config_file import load_config
    from drift_ray.lineage import recorded_config
    from drift_ray.store import RUN_FILE, RunStore

    is_run = RunStore(path).exists(RUN_FILE)
    return recorded_config(path, overrides) if is_run else load_config(path, overrides)


def _compare(run_a: str, run_b: str, *, as_json: bool) -> None:
    from drift_ray.evaluation.results import EvaluatedModel, compare_models
    from drift_ray.evaluation.table import comparison_table, success_table
    from drift_ray.progress import console

    a, b = EvaluatedModel.find(run_a), EvaluatedModel.find(run_b)
    comparisons = compare_models(a, b)
    if as_json:
        click.echo(json.dumps(comparisons, indent=2))
        return
    click.echo(f"A: {a}\nB: {b}")
    metrics_a, metrics_b = a.metrics(), b.metrics()
    console.print(
        success_table({name: {"A": metrics_a[name], "B": metrics_b[name]} for name in comparisons})
    )
    for name, comparison in comparisons.items():
        # Their full names are too long for a table.
        letters = {"baseline": "A", "candidate": "B"}
        console.print(comparison_table({**comparison, **letters}, name=name))


def _sweep(
    path: str, overrides: Sequence[str], *, beta: Sequence[float], gamma: Sequence[float]
) -> None:
    from drift_ray.cluster import prepare_ray, ray_cluster
    from drift_ray.progress import console
    from drift_ray.store import RunStore
    from drift_ray.weighting.passes import rollout_parts
    from drift_ray.weighting.sweep import SWEEP_FILE, sweep, sweep_configs
    from drift_ray.weighting.table import sweep_table

    config = _load(path, overrides)
    store = RunStore(config.run)
    weightings = sweep_configs(config.weighting, betas=beta, gammas=gamma)
    parts = rollout_parts(store)
    prepare_ray()
    with ray_cluster(config):
        rows = sweep(store, parts, weightings)
    console.print(sweep_table(rows))
    click.echo(f"details in {store.path(SWEEP_FILE)}")


def _numbers(text: str | None, option: str) -> list[float]:
    try:
        return [] if text is None else [float(each) for each in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of numbers", param_hint=option) from None


if __name__ == "__main__":
    sys.exit(main())
