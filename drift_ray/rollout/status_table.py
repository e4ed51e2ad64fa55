"""A stage's status as a person wants to read it."""

from __future__ import annotations

import time
from datetime import timedelta

from rich.table import Table

from drift_ray.outcome import CommandOutcome
from drift_ray.progress import console
from drift_ray.rollout.status import StageStatus


def print_outcome(outcome: CommandOutcome) -> None:
    """Print what became of a run's last command, or what it does."""
    when = _clock(outcome.time_s)
    where = f" in {outcome.step}" if outcome.step else ""
    match outcome.state:
        case "running":
            now = f"at work{where} since {when}, unless it was killed"
        case "done":
            now = f"done at {when}"
        case _:
            now = f"{outcome.state}{where} at {when}"
    line = f"{', '.join(outcome.stages)}: {now} (driver {outcome.driver})"
    console.print(line, markup=False, soft_wrap=True)
    if outcome.error:
        console.print(outcome.error, markup=False, soft_wrap=True)


def print_status(status: StageStatus) -> None:
    """Print how a stage goes, and its replicas."""
    done = f"{status.num_done:,} of {status.num_total:,} trajectories"
    console.print(f"{status.stage}: {_state(status)}, {done}")
    facts = [
        f"{status.num_solved:,} solved since {_clock(status.began_s)}",
        f"{status.num_failures:,} failed",
        f"{status.tokens_per_s:,.0f} tokens/s",
    ]
    if status.is_alive and status.time_left_s is not None:
        facts.append(f"{_duration(status.time_left_s)} to go")
    console.print(", ".join(facts))
    console.print(f"driver {status.driver}, {status.num_replicas_wanted} replicas wanted")
    table = Table()
    state = "state" if status.is_alive else "last state"
    for column in ("replica", state, "node", "in flight", "trajectories", "tokens"):
        table.add_column(column, justify="left" if column in (state, "node") else "right")
    for each in status.replicas:
        table.add_row(
            str(each.replica_id),
            each.state,
            f"{each.node}:{each.pid}" if each.node else "-",
            f"{each.num_in_flight:,}",
            f"{each.num_trajectories:,}",
            f"{each.num_sampled_tokens:,}",
        )
    if status.replicas:
        console.print(table)


def _state(status: StageStatus) -> str:
    if status.is_running and not status.is_alive:
        return f"no sign of life for {_duration(status.silent_s())}: run the same command to go on"
    return status.state


def _clock(time_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_s))


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
