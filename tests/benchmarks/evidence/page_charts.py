"""The page's plots: success@5 over its cost, and success by turn, of every method."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

from drift_ray.report.drawing import COLORS, SERIES, Chart, percent_axes, svg
from tests.benchmarks.evidence.collect import MAX_TURNS, MODES
from tests.benchmarks.evidence.plan import LABELS, REFERENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Results = Mapping[str, Any]
_COLOR = {
    REFERENCE: "muted",
    **dict(zip((name for name in LABELS if name != REFERENCE), cycle(SERIES))),
}


def charts(task: str, found: Results) -> list[Chart]:
    """Success within the most turns over CPU seconds, then within k turns; each in both modes.

    Args:
        task: Its name.
        found: The results of its methods.
    """
    keys = [(_color(name), LABELS.get(name, name)) for name in found if name != REFERENCE]
    if REFERENCE in found:
        keys.append(("muted", f"{LABELS[REFERENCE]} (dotted)"))
    drawn = [
        (f"Within {MAX_TURNS} turns over CPU seconds", _over_cost),
        ("Within k turns", _by_turn),
    ]
    titles = [(f"{what}, {mode}", draw, mode) for what, draw in drawn for mode in MODES]
    return [
        Chart(title=title, svg=svg(partial(draw, found, mode), f"{task}: {title}"), keys=keys)
        for title, draw, mode in titles
    ]


def _over_cost(found: Results, mode: str, axes: Axes) -> None:
    for name, method in found.items():
        if name == REFERENCE:
            level = method[mode]["success_at"][-1]["estimate"]
            axes.axhline(level, color=COLORS["muted"], linestyle=":", linewidth=1.2)
            continue
        rates = [point[mode] for point in method["curve"]]
        estimates = [rate["estimate"] for rate in rates]
        axes.errorbar(
            [point["cpu_s"] for point in method["curve"]],
            estimates,
            # No less than 0: intervals are rounded where a rate is 1.
            yerr=[
                [max(rate["estimate"] - rate["low"], 0.0) for rate in rates],
                [max(rate["high"] - rate["estimate"], 0.0) for rate in rates],
            ],
            color=COLORS[_color(name)],
            marker="o",
            markersize=4.5,
            elinewidth=1.0,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(which="minor", length=0, pad=6, labelsize=8.0)
    percent_axes(axes, "CPU seconds of sampling and training")


def _by_turn(found: Results, mode: str, axes: Axes) -> None:
    for name, method in found.items():
        rates = method[mode]["success_at"]
        axes.plot(
            [rate["k"] for rate in rates],
            [rate["estimate"] for rate in rates],
            color=COLORS[_color(name)],
            linestyle=":" if name == REFERENCE else "-",
            marker="o",
            markersize=3.5,
        )
    axes.set_xticks(range(1, MAX_TURNS + 1))
    percent_axes(axes, "within k turns")


def _color(name: str) -> str:
    return _COLOR.get(name, "ink")
