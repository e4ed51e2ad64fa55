"""A run's results and trajectories in a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from drift_ray.report.facts import COST_HEAD, Rows, costs, headline, training_facts, weight_facts
from drift_ray.report.results import RunResults, read_results
from drift_ray.report.search import Found, Search, find, return_formula, weight_formula
from drift_ray.store import RunStore

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LONG = ("token_ids", "logprobs")


def page_through(
    url: str, search: Search, *, source: str, limit: int | None, console: Console
) -> None:
    """Show a run's summary, then its trajectories, in a pager if this is a terminal.

    Args:
        url: The run directory.
        search: Which trajectories.
        source: ``rollouts``, or a task or benchmark and a model, such as ``addition/trained``.
        limit: Show so many trajectories at most.
        console: Where to.

    Raises:
        ConfigError: There is no run.
        StageError: There is no such source.
        DataError: A file is damaged.
    """
    results, store = read_results(url), RunStore(url)
    where = results.source(store, source) if results.sources(store) else None

    def pages() -> Iterator[str]:
        yield _rendered(console, summary(results))
        if where is None:
            yield "nothing was sampled there yet: `drift-ray rollout` or `drift-ray run` does\n"
            return
        num_shown = 0
        for num_shown, found in enumerate(islice(find(store, where, search), limit), 1):  # noqa: B007
            yield _rendered(console, trajectory(found, results))
        yield f"{source}: {num_shown:,} shown\n"

    click.echo_via_pager(pages(), color=console.is_terminal)


def as_json(url: str, search: Search, *, source: str, limit: int | None) -> str:
    """The same for programs: one JSON object. Raises as :func:`page_through`."""
    results, store = read_results(url), RunStore(url)
    where = results.source(store, source) if results.sources(store) else None
    found = () if where is None else islice(find(store, where, search), limit)
    return json.dumps(
        {
            "run": results.url,
            "evaluations": results.evaluations,
            "comparisons": results.comparisons,
            "weights": results.weights,
            "training": results.training[-1] if results.training else None,
            "sampling": [asdict(each) for each in results.sampling],
            "failures": [asdict(each) for each in results.failures],
            "source": source,
            "trajectories": [_plain(each, results) for each in found],
        }
    )


def summary(results: RunResults) -> RenderableType:
    """What a run came to."""
    parts: list[RenderableType] = [Text(results.url, style="bold")]
    parts += [Text(sentence, style="yellow") for sentence in results.stale]
    for name, models in results.evaluations.items():
        head = headline(name, models, results.comparisons.get(name))
        rows: Rows = []
        for tile in head.tiles:
            value = f"{tile.before} → {tile.after}" if tile.before else tile.after
            rows += [
                (tile.label, value),
                *(("", t) for t in (tile.intervals, tile.difference) if t),
            ]
        parts += [Text(""), Text(name, style="bold"), _grid(rows), Text(head.note, style="dim")]
    for title, facts in (
        ("weights", weight_facts(results.weights)),
        ("training", training_facts(results.training, results.model)),
    ):
        if facts:
            parts += [Text(""), Text(title, style="bold"), _grid(facts)]
    if stages := costs(results):
        parts += [Text(""), Text("cost", style="bold"), _grid([COST_HEAD, *stages])]
    for each in results.failures:
        counts = ", ".join(f"{count:,} {cause}" for cause, count in each.by_cause.items())
        parts += [Text(""), Text(f"failures in {each.folder}: {counts}", style="red")]
    return Group(*parts, Text(""))


def trajectory(found: Found, results: RunResults) -> RenderableType:
    """One trajectory: its messages, verdicts, and how it came to its return and weight."""
    row = found.row
    title = f"{row['prompt_id']} #{row['trajectory_index']} · {row['end_reason']}"
    parts: list[RenderableType] = [
        Rule(Text(visible(title), style="bold"), align="left"),
        Text(visible(f"expected answer {row['gold']}"), style="dim"),
    ]
    turns = iter(row["turns"])
    for message in row["messages"]:
        turn = next(turns, None) if message["role"] == "assistant" else None
        content = turn["text"] if turn else message["content"]
        parts += [
            Text(message["role"], style="cyan"),
            Padding(Text(visible(content)), (0, 0, 0, 2)),
        ]
        if turn:
            parts.append(_verdict(turn, row["logprobs"]))
    weights = results.weights
    if weights and row["importance_weight"] is not None and row["shaped_return"] is not None:
        parts.append(Text(return_formula(row, weights["parameters"])))
        parts.append(Text(weight_formula(found, weights)))
    return Group(*parts, Text(""))


def visible(text: str) -> str:
    """A text whose control characters are seen, not obeyed: models write what they like."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _verdict(turn: Mapping[str, Any], logprobs: list[float | None]) -> Text:
    solved = turn["reward"] > 0
    word = "✓ correct" if solved else "✗ wrong" if turn["format_ok"] else "✗ no answer"
    said = " ‖ ".join(turn["answers"])
    sampled = [each or 0.0 for each in logprobs[turn["token_start"] : turn["token_end"]]]
    facts = [
        *([f"answer {said}"] if said else []),
        f"reward {turn['reward']:g}",
        f"{len(sampled)} tokens, log-probability {sum(sampled):.2f}",
        *([f"cut off: {turn['stop_reason']}"] if turn["stop_reason"] != "stop" else []),
    ]
    text = Text("  ").append(word, style="green" if solved else "red")
    return text.append(visible(" · " + " · ".join(facts)), style="dim")


def _plain(found: Found, results: RunResults) -> dict[str, Any]:
    row = {name: value for name, value in found.row.items() if name not in _LONG}
    if results.weights and row["shaped_return"] is not None:
        row["return_formula"] = return_formula(found.row, results.weights["parameters"])
        row["weight_formula"] = weight_formula(found, results.weights)
    return row


def _grid(rows: Rows) -> Table:
    table = Table.grid(padding=(0, 2))
    for _ in range(max(map(len, rows))):
        table.add_column(no_wrap=True)
    for first, *others in rows:
        table.add_row(Text(first, style="dim"), *(Text(each) for each in others))
    return table


def _rendered(console: Console, what: RenderableType) -> str:
    with console.capture() as capture:
        console.print(what)
    return capture.get()
