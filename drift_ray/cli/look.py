"""The commands that look at runs and change nothing, but for the report they write."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from drift_ray.cli.commands import (
    AS_JSON,
    COMPLETE_FILES,
    RUN,
    command,
    print_json,
    show,
    speak_up,
)


@command(example="drift-ray compare runs/first:reference runs/first")
@click.argument("run_a", metavar="RUN_A[:MODEL]", shell_complete=COMPLETE_FILES)
@click.argument("run_b", metavar="RUN_B[:MODEL]", shell_complete=COMPLETE_FILES)
@AS_JSON
def compare(run_a: str, run_b: str, as_json: bool) -> None:
    """Compare the models of two run directories, prompt by prompt.

    Both must have played the same prompts. MODEL is reference or trained; trained when omitted.
    Shown are the difference of success@k with its 95 % interval and p-value, prompts won and lost.
    JSON has their ids, too.
    """
    from drift_ray.evaluation.results import EvaluatedModel, compare_models
    from drift_ray.evaluation.table import comparison_table, success_table

    a, b = EvaluatedModel.find(run_a), EvaluatedModel.find(run_b)
    comparisons = compare_models(a, b)
    if as_json:
        print_json(comparisons)
        return
    click.echo(f"A: {a}\nB: {b}")
    metrics_a, metrics_b = a.metrics(), b.metrics()
    show(
        success_table({name: {"A": metrics_a[name], "B": metrics_b[name]} for name in comparisons})
    )
    for name, comparison in comparisons.items():
        # Their full names are too long for a table.
        letters = {"baseline": "A", "candidate": "B"}
        show(comparison_table({**comparison, **letters}, name=name))


@command(example="drift-ray report runs/first --max-trajectories 2000")
@RUN
@click.option(
    "--max-trajectories",
    type=click.IntRange(min=1),
    help="Rollouts in the page, and as many evaluated ones; 10,000 when omitted.",
)
def report(run: str, max_trajectories: int | None) -> None:
    """Write report.html: a run's figures, plots and trajectories.

    It lies in run directory RUN, where `drift-ray run` writes it at its end. The page needs no
    network and may be sent around.
    """
    from drift_ray.report.render import write_report
    from drift_ray.report.selection import MAX_TRAJECTORIES

    written = write_report(run, max_trajectories or MAX_TRAJECTORIES)
    click.echo(str(written))


@command(example="drift-ray inspect runs/first --outcome failed --limit 5")
@RUN
@click.option(
    "--source",
    default="rollouts",
    show_default=True,
    help="Or a task or benchmark and a model, such as addition/trained.",
)
@click.option("--prompt", default="", help="Part of the prompt's id, question or gold.")
@click.option("--outcome", type=click.Choice(["solved", "failed"]), help="Both when omitted.")
@click.option("--limit", type=click.IntRange(min=0), help="Trajectories at most; all when omitted.")
@AS_JSON
def inspect(
    run: str, source: str, prompt: str, outcome: str | None, limit: int | None, as_json: bool
) -> None:
    """Show a run in the terminal: summary, then its trajectories.

    Of run directory RUN, each trajectory with verdicts, return and importance weight.
    """
    from drift_ray.progress import console
    from drift_ray.report import terminal
    from drift_ray.report.search import Search

    search = Search(text=prompt, solved=None if outcome is None else outcome == "solved")
    if as_json:
        click.echo(terminal.as_json(run, search, source=source, limit=limit))
    else:
        speak_up()
        terminal.page_through(run, search, source=source, limit=limit, console=console)


@command(example="watch drift-ray status runs/first")
@RUN
@AS_JSON
def status(run: str, as_json: bool) -> None:
    """How a run goes: progress, rates, replicas, time to go.

    That is its sampling. First what became of the last `run` or stage, or what it is at.
    """
    from drift_ray.lineage import require_run
    from drift_ray.outcome import read_outcome
    from drift_ray.rollout.status import read_status
    from drift_ray.rollout.status_table import print_outcome, print_status
    from drift_ray.store import STATUS_FILE, RunStore

    store = RunStore(run)
    require_run(store)
    outcome = read_outcome(store)
    sampling = read_status(store) if outcome is None or store.exists(STATUS_FILE) else None
    if as_json:
        told = store.read_json(STATUS_FILE) if sampling else {}
        click.echo(json.dumps({**told, "outcome": outcome and asdict(outcome)}))
        return
    speak_up()
    if outcome:
        print_outcome(outcome)
    if sampling:
        print_status(sampling)
