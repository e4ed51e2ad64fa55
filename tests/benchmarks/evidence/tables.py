"""Results as Markdown, and where it goes in the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.benchmarks.evidence.collect import MAX_TURNS, MODES
from tests.benchmarks.evidence.plan import DRIFT, LABELS, TASKS

BEGIN, END = "<!-- evidence: begin -->", "<!-- evidence: end -->"
Results = Mapping[str, Any]
_RATES = [f"success@{k} {mode}" for mode in MODES for k in (1, MAX_TURNS)]


def markdown(results: Results) -> str:
    """All tables, with the commit and the date that the results carry."""
    labels = {task.name: task.label for task in TASKS}
    parts = [
        f"Made {results['date']} at commit `{results['commit']}`: means over "
        f"{_num_seeds(results)} seeds, 95 % intervals clustered by prompt in brackets. CPU seconds "
        "are those of sampling and training; starting engines and tuning is not in them."
    ]
    for name, task in results["tasks"].items():
        parts.append(f"**{labels.get(name, name)}**")
        parts.append(_methods_table(task["methods"]))
        parts.append(_against_drift(task["methods"]))
        if len(task["ablations"]) > 1:
            parts.append(
                "DRIFT with one setting changed: paired differences from it as it was tuned."
            )
            parts.append(_ablations_table(task["ablations"]))
    return "\n\n".join(parts) + "\n"


def insert(text: str, section: str) -> str:
    """A README with the section between the two markers, in place of what stood there.

    Raises:
        ValueError: The markers are missing or in the wrong order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the README needs a line {BEGIN} and, below it, a line {END}")
    return f"{before}{begin}\n{section.strip()}\n{end}{after}"


def _methods_table(methods: Results) -> str:
    header = [
        "method",
        *_RATES,
        "repeats",
        "KL (nats)",
        "trajectories",
        "tokens",
        "CPU s sampling",
        "CPU s training",
    ]
    rows = []
    for name, found in methods.items():
        cost = found["cost"]
        rows.append(
            [
                LABELS.get(name, name),
                *(_rate(found[mode]["success_at"][index]) for mode in MODES for index in (0, -1)),
                _share(found["sampled"]["repeated_answers"]),
                _kl(found),
                f"{cost['num_trajectories']:,.0f}",
                f"{cost['num_sampled_tokens']:,.0f}",
                f"{cost['sampling_cpu_s']:.0f}",
                f"{cost['training_cpu_s']:.0f}",
            ]
        )
    return _table(header, rows)


def _against_drift(methods: Results) -> str:
    header = [
        "against DRIFT, paired",
        *_RATES,
        "cost to reach DRIFT's sampled success@5",
    ]
    rows = [
        [
            LABELS.get(name, name),
            *(_difference(each) for mode in MODES for each in found["versus_drift"].get(mode, [])),
            _reach(found["cost_to_reach_drift"]),
        ]
        for name, found in methods.items()
        if name != DRIFT and "versus_drift" in found
    ]
    return _table(header, rows)


def _ablations_table(variants: Results) -> str:
    rows = []
    for name, found in variants.items():
        cells = [
            _rate(row) if name == "best" else _difference(gap)
            for mode in MODES
            for row, gap in zip(
                (found[mode]["success_at"][index] for index in (0, -1)),
                found["versus_drift"][mode],
                strict=True,
            )
        ]
        label = "as tuned" if name == "best" else name.replace("_", " ")
        rows.append([label, *cells, _kl(found)])
    return _table(["setting", *_RATES, "KL (nats)"], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rate(row: Results) -> str:
    return f"{row['estimate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _difference(row: Results) -> str:
    return f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def _kl(found: Results) -> str:
    return f"{max(found['kl']['mean'], 0.0):.2f}"


def _share(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.1%}"


def _reach(seeds: Sequence[Results]) -> str:
    ratios = [seed["ratio"] for seed in seeds if seed["ratio"] is not None]
    if not ratios:
        return "not reached"
    spread = f"{min(ratios):.1f}-{max(ratios):.1f}" if len(ratios) > 1 else f"{ratios[0]:.1f}"
    return f"{spread} x ({len(ratios)} of {len(seeds)} seeds)"


def _num_seeds(results: Results) -> int:
    return max(
        len(found["seeds"])
        for task in results["tasks"].values()
        for found in task["methods"].values()
    )
