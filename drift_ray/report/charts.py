"""The plots of a run's page."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from drift_ray.evaluation.results import REFERENCE, TRAINED
from drift_ray.report.drawing import COLORS, Chart, as_percent, percent_axes, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]
Figures = Mapping[str, Any]

_MAX_POINTS = 300
_WEIGHT_BINS = np.linspace(-3.0, 2.0, 21)
_MODELS = [("before", REFERENCE), ("after", TRAINED)]
_SHARES = [("before", "trajectories"), ("after", "weight")]


def success_chart(title: str, models: Mapping[str, Figures]) -> Chart:
    """Success within k turns of each model, with its interval."""

    def draw(axes: Axes) -> None:
        for color, model in _MODELS:
            if rows := models.get(model, {}).get("success_at"):
                _rates(axes, rows, "k", "estimate", COLORS[color])
        _rate_axes(axes, "within k turns")

    return Chart(title=title, svg=svg(draw, title), keys=_present(models))


def rate_chart(title: str, models: Mapping[str, Figures], rows: str, rate: str) -> Chart:
    """A rate of each turn, of each model, with its interval; turns nobody reached are left out."""
    known = {
        model: found
        for model, metrics in models.items()
        if (found := [row for row in metrics.get(rows, []) if row[rate] is not None])
    }

    def draw(axes: Axes) -> None:
        for color, model in _MODELS:
            if model in known:
                _rates(axes, known[model], "turn", rate, COLORS[color])
        _rate_axes(axes, "turn")

    return Chart(title=title, svg=svg(draw, title), keys=_present(known))


def mass_chart(weights: Figures) -> Chart:
    """Trajectories and weight by the turn of the first success."""
    trajectories = weights["trajectory_frac_by_first_success_turn"]
    mass = weights["weight_frac_by_first_success_turn"]

    def draw(axes: Axes) -> None:
        _paired_bars(axes, list(trajectories.values()), list(mass.values()))
        axes.set_xticks(range(len(trajectories)), list(trajectories))
        percent_axes(axes, "solved at turn")

    title = "Mass by turn of success"
    return Chart(title=title, svg=svg(draw, title), keys=_SHARES)


def weight_chart(importance_weight: Floats) -> Chart:
    """How trajectories, and the weight they carry, are spread over sizes of weight."""
    size = np.abs(importance_weight)
    exponent = np.log10(np.clip(size, 1e-3, 10 ** _WEIGHT_BINS[-1]))
    count = np.histogram(exponent, _WEIGHT_BINS)[0] / max(len(size), 1)
    mass = np.histogram(exponent, _WEIGHT_BINS, weights=size)[0] / (size.sum() or 1.0)
    last = int(np.flatnonzero(count)[-1]) + 1 if count.any() else len(count)

    def draw(axes: Axes) -> None:
        _paired_bars(axes, count[:last], mass[:last])
        ticks = [each for each in (-3, -2, -1, 0, 1, 2) if 4 * (each + 3) <= last]
        names = ["≤ 0.001", "0.01", "0.1", "1", "10", "100"]
        axes.set_xticks([4 * (each + 3) - 0.5 for each in ticks], names[: len(ticks)])
        percent_axes(axes, "importance weight w")

    title = "Distribution of the weights"
    return Chart(title=title, svg=svg(draw, title), keys=_SHARES)


def ess_chart(weights: Figures) -> Chart:
    """How many prompts have which effective share of their group."""
    histogram = weights["ess_frac"]["histogram"]

    def draw(axes: Axes) -> None:
        centers = (np.arange(len(histogram)) + 0.5) / len(histogram)
        axes.bar(centers, histogram, width=0.085, color=COLORS["after"])
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(as_percent)
        axes.set_xlabel("effective share of the group")

    title = "Effective sample size by prompt"
    return Chart(title=title, svg=svg(draw, title), note="number of prompts")


def round_charts(rounds: Sequence[Figures]) -> list[Chart]:
    """What the trajectories that each round sampled came to."""
    number = [each["round"] for each in rounds]
    first, last = ([each["success_at"][place]["estimate"] for each in rounds] for place in (0, -1))
    within = f"within {rounds[0]['success_at'][-1]['k']} turns"
    drawn = [("before", within, last), ("after", "at the first turn", first)]

    def success(axes: Axes) -> None:
        for color, _, rate in drawn:
            axes.plot(number, rate, color=COLORS[color], marker="o", markersize=3)
        _rate_axes(axes, "round")

    def mean_return(axes: Axes) -> None:
        returns = [each["mean_return"] for each in rounds]
        axes.plot(number, returns, color=COLORS["after"], marker="o", markersize=3)
        _whole_numbers(axes)
        axes.set_xlabel("round")

    solved, returned = "Solved by the samples of a round", "Mean return of a round"
    keys = [(color, text) for color, text, _ in drawn]
    return [
        Chart(title=solved, svg=svg(success, solved), keys=keys),
        Chart(title=returned, svg=svg(mean_return, returned)),
    ]


def training_charts(steps: Sequence[Figures]) -> list[Chart]:
    """Loss, divergence from the reference, gradient norm and effective samples by step."""
    lines: list[tuple[str, str, list[tuple[str, str, str]]]] = [
        ("Loss", "", [("before", "nll", "unweighted"), ("after", "loss", "weighted"),
                      ("alert", "held_out_loss", "held out")]),
        ("KL(π_ref‖π_θ)", "estimate from the stored log-probabilities, nats a token",
         [("after", "kl_ref", "")]),
        ("Gradient norm", "before clipping", [("after", "grad_norm", "")]),
        ("Effective samples of a batch", "(Σw)²/Σw² over its size", [("after", "ess_frac", "")]),
    ]  # fmt: skip
    with_share = [{**each, "ess_frac": each["ess"] / max(each["num_samples"], 1)} for each in steps]
    charts = []
    for title, note, series in lines:
        known = [entry for entry in series if any(s.get(entry[1]) is not None for s in with_share)]
        if known:
            charts.append(_curves(title, note, known, with_share))
    return charts


def _curves(
    title: str, note: str, series: Sequence[tuple[str, str, str]], steps: Sequence[Figures]
) -> Chart:
    def draw(axes: Axes) -> None:
        for color, key, _ in series:
            x, y = _thinned([(s["step"] + 1, s[key]) for s in steps if s.get(key) is not None])
            axes.plot(x, y, color=COLORS[color], linewidth=0.9, alpha=0.35)
            axes.plot(x, _smooth(y), color=COLORS[color])
        axes.set_xlabel("step")
        if series[0][1] == "ess_frac":
            axes.yaxis.set_major_formatter(as_percent)

    keys = [(color, text) for color, _, text in series if text]
    return Chart(title=title, svg=svg(draw, title), note=note, keys=keys)


def _thinned(points: Sequence[tuple[int, float]]) -> tuple[Floats, Floats]:
    """At most :data:`_MAX_POINTS` of them: means of neighbours."""
    array = np.asarray(points, dtype=np.float64)
    blocks = np.array_split(array, min(len(array), _MAX_POINTS))
    means = np.array([block.mean(axis=0) for block in blocks])
    return means[:, 0], means[:, 1]


def _smooth(values: Floats) -> Floats:
    """Mean over a window of a tenth of the values, narrower at the ends."""
    half = max(len(values) // 20, 1)
    sums = np.concatenate([[0.0], np.cumsum(np.nan_to_num(values))])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _rates(axes: Axes, rows: Sequence[Figures], x: str, y: str, color: str) -> None:
    place = [row[x] for row in rows]
    low, high = ([row[limit] for row in rows] for limit in ("low", "high"))
    axes.fill_between(place, low, high, color=color, alpha=0.16, linewidth=0)
    axes.plot(place, [row[y] for row in rows], color=color, marker="o", markersize=4.5)


def _rate_axes(axes: Axes, label: str) -> None:
    axes.set_ylim(0, 1.02)
    _whole_numbers(axes)
    percent_axes(axes, label)


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def _paired_bars(axes: Axes, left: Any, right: Any) -> None:
    place = np.arange(len(left))
    axes.bar(place - 0.2, left, width=0.38, color=COLORS["before"])
    axes.bar(place + 0.2, right, width=0.38, color=COLORS["after"])


def _present(models: Collection[str]) -> list[tuple[str, str]]:
    return [(color, model) for color, model in _MODELS if model in models]
