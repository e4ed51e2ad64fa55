"""success@5 over what it costs, as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.evidence.plan import LABELS, REFERENCE


def plot(task: str, found: Mapping[str, Any], file: Path) -> None:
    """Draw greedy and sampled success@5 of every policy that was evaluated, over its CPU seconds.

    Args:
        task: Its name.
        found: The results of its methods.
        file: Where to.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "drift_ray"  # equal results are equal files
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    for axes, mode in zip(figure.subplots(1, 2), ("greedy", "sampled"), strict=True):
        for number, (name, label) in enumerate(LABELS.items()):
            if name not in found or name == REFERENCE:
                continue
            curve = found[name]["curve"]
            rates = [point[mode] for point in curve]
            estimates = [rate["estimate"] for rate in rates]
            axes.errorbar(
                [point["cpu_s"] for point in curve],
                estimates,
                yerr=[
                    [rate["estimate"] - rate["low"] for rate in rates],
                    [rate["high"] - rate["estimate"] for rate in rates],
                ],
                color=f"C{number}",
                marker="osv^Dx"[number % 6],
                capsize=2,
                label=label,
            )
        if REFERENCE in found:
            level = found[REFERENCE][mode]["success_at"][-1]["estimate"]
            axes.axhline(level, color="grey", linestyle=":", label="reference policy")
        axes.set(xscale="log", xlabel="CPU s", ylabel="success@5", title=f"{task}, {mode}")
    figure.axes[0].legend(fontsize="small")
    figure.savefig(file, metadata={"Date": None})
