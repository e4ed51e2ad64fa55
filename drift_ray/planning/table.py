"""A plan as a table on screen."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from drift_ray.planning.plan import Plan, PlannedStep, Sampling

_MARKS = {"done": "✓", "due": "→", "left out": "-", "blocked": "✗"}
_LABELS = {
    "replicas": "replicas",
    "training_workers": "training workers",
    "cluster": "cluster",
    "num_cpus_at_once": "logical CPUs for all of it at once",
}


def plan_table(plan: Plan) -> RenderableType:
    """The steps, then what the cluster is asked for."""
    table = Table(title=f"plan of {plan.run}", title_justify="left")
    table.add_column("step", no_wrap=True)
    table.add_column("state")
    table.add_column("trajectories to sample", justify="right")
    table.add_column("tokens to sample", justify="right")
    table.add_column("time", justify="right", no_wrap=True)
    for step in plan.steps:
        state = f"{_MARKS[step.state]} {step.state}"
        if step.needs:
            state += f": {step.needs} is not complete"
        table.add_row(Text(step.name), Text(state), *_work(step), _time(step))
    lines = [Text(f"{_LABELS[name]}: {_wanted(each)}") for name, each in plan.resources.items()]
    return Group(table, *lines)


def _work(step: PlannedStep) -> tuple[str, str]:
    sampling = step.sampling
    if sampling is None or step.state == "left out":
        return "", ""
    failed = f", {sampling.num_failed:,} failed" if sampling.num_failed else ""
    trajectories = f"{sampling.num_trajectories_left:,} of {sampling.num_trajectories:,}{failed}"
    return trajectories, _tokens(sampling)


def _tokens(sampling: Sampling) -> str:
    if not sampling.num_trajectories_left:
        return "0"
    most = f"at most {sampling.max_tokens_left:,}"
    expected = sampling.expected_tokens_left
    return most if expected is None else f"about {expected:,}, {most}"


def _time(step: PlannedStep) -> str:
    if step.expected_s is None:
        return "" if step.state != "due" else "not known"
    minutes, seconds = divmod(round(step.expected_s), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"about {hours} h {minutes:02} min"
    return f"about {minutes} min {seconds:02} s" if minutes else f"about {seconds} s"


def _wanted(value: Any) -> str:
    if not isinstance(value, dict):
        return f"{value:g}" if isinstance(value, float) else str(value)
    num = f"{value['min']} to {value['max']}" if value["min"] < value["max"] else f"{value['max']}"
    rest = {**value["resources"], **value["label_selector"]}
    beside = "".join(f", {name}: {each}" for name, each in rest.items())
    cpus, gpus = _count(value["num_cpus"], "CPU"), _count(value["num_gpus"], "GPU")
    return f"{num}, each {cpus}, {gpus}{beside}"


def _count(num: float, what: str) -> str:
    return f"{num:g} {what}" if num == 1 else f"{num:g} {what}s"
