"""How near DRIFT comes to its closed form, in a problem where that is known: see ``_closed_form``.

    python tests/benchmarks/closed_form.py [--largest 262144] [--out runs/benchmarks]

KL(π_θ‖π*) against the number of trajectories a prompt, for every loss, with five seeds; its slope
in a log-log plot, fitted seed by seed from 4096 samples on; and what theory expects. Writes
``closed_form.json`` and ``closed_form.svg``. A minute and a half on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from _closed_form import Problem, fit, make_problem, sample_weights
from rich.console import Console
from rich.table import Table

NUM_SEEDS = 5
STUDENT_T = 2.776  # 97.5 % quantile with NUM_SEEDS - 1 degrees of freedom
SMALLEST = 1024
ASYMPTOTIC = 4096
"""Below it some contexts were hardly ever visited."""


class Contender(NamedTuple):
    """A loss, and how the weights it takes are normalised."""

    loss_turns: Literal["last", "all"]
    token_reduction: Literal["mean", "sum"]
    group_size: int | None = None

    def __str__(self) -> str:
        groups = f", groups of {self.group_size}" if self.group_size else ""
        return f"{self.loss_turns}, {self.token_reduction}{groups}"


CLOSED_FORM = Contender("all", "sum")
CONTENDERS = [
    CLOSED_FORM,
    CLOSED_FORM._replace(group_size=16),
    Contender("all", "mean"),
    Contender("last", "sum"),
    Contender("last", "mean"),
]


def measure(problem: Problem, contender: Contender, num_samples: int) -> list[float]:
    """KL(π_θ‖π*) for every seed, nats."""
    best = problem.optimum()
    return [
        problem.divergence(
            fit(
                problem,
                sample_weights(
                    problem, num_samples, np.random.default_rng(seed), contender.group_size
                ),
                contender.loss_turns,
                contender.token_reduction,
            ),
            best,
        )
        for seed in range(NUM_SEEDS)
    ]


def summary(values: list[float]) -> dict[str, float]:
    """Mean over the seeds and half the width of its 95 % interval."""
    half = STUDENT_T * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return {"mean": float(np.mean(values)), "half_width": half}


def slope(divergences: dict[int, list[float]]) -> dict[str, float]:
    """Of log KL in log n."""
    sizes = [n for n in divergences if n >= ASYMPTOTIC]
    logs = np.log([divergences[n] for n in sizes])
    return summary(np.polyfit(np.log(sizes), logs, 1)[0].tolist())


def limit_of(problem: Problem, contender: Contender) -> float | None:
    """What KL(π_θ‖π*) tends to; None where it is only measured."""
    if contender.group_size:
        return None
    return problem.divergence(
        problem.limit(contender.loss_turns, contender.token_reduction), problem.optimum()
    )


def plot(results: list[dict[str, Any]], rate: float, file: Path) -> None:
    """KL over samples, both logarithmic, with the limits that theory gives."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "drift_ray"  # equal results are equal files
    axes = (figure := Figure(figsize=(6.4, 4.4), layout="constrained")).subplots()
    for number, result in enumerate(results):
        sizes = [int(n) for n in result["kl"]]
        kl = [result["kl"][n] for n in result["kl"]]
        axes.errorbar(
            sizes,
            [each["mean"] for each in kl],
            yerr=[each["half_width"] for each in kl],
            color=f"C{number}",
            marker="os^vx"[number],
            capsize=3,
            label=result["name"],
        )
        if result["limit"]:
            axes.axhline(result["limit"], color=f"C{number}", linestyle=":")
    axes.plot(sizes, rate / np.array(sizes), "k--", linewidth=1, label="theory: rate / n")
    axes.set(xscale="log", yscale="log", xlabel="trajectories a prompt", ylabel="KL(π_θ‖π*), nats")
    axes.legend(fontsize="small")
    figure.savefig(file, metadata={"Date": None})


def show(results: list[dict[str, Any]], rate: float) -> None:
    """Print what was found."""
    sizes = list(results[0]["kl"])
    table = Table(title="KL(π_θ‖π*), nats, by trajectories a prompt (95 % over seeds)")
    for column in ("loss", *sizes, "limit", "slope"):
        table.add_column(column, justify="left" if column == "loss" else "right")
    for result in results:
        cells = [
            f"{kl['mean']:.2g} ± {kl['half_width']:.1g}" if (kl := result["kl"].get(n)) else ""
            for n in sizes
        ]
        limit = "" if result["limit"] is None else f"{result['limit']:.4f}"
        found = result["slope"]
        table.add_row(
            result["name"], *cells, limit, f"{found['mean']:.3f} ± {found['half_width']:.3f}"
        )
    table.add_row("theory: rate / n", *(f"{rate / int(n):.2g}" for n in sizes), "0", "-1")
    Console(width=140).print(table)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=1 << 18, help="65536 or more")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    problem = make_problem()
    all_sizes = [SMALLEST]
    while all_sizes[-1] * 4 <= arguments.largest:
        all_sizes.append(all_sizes[-1] * 4)
    results = []
    for contender in CONTENDERS:
        # What does not fall need not be seen everywhere.
        sizes = all_sizes if contender == CLOSED_FORM else all_sizes[::-2][::-1]
        found = {n: measure(problem, contender, n) for n in sizes}
        results.append(
            {
                "name": str(contender),
                "kl": {str(n): summary(values) for n, values in found.items()},
                "limit": limit_of(problem, contender),
                "slope": slope(found),
            }
        )
    rate = problem.rate()
    show(results, rate)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "closed_form.json").write_text(
        json.dumps({"num_seeds": NUM_SEEDS, "rate": rate, "losses": results}, indent=2) + "\n"
    )
    plot(results, rate, arguments.out / "closed_form.svg")
    print(f"written: {arguments.out}/closed_form.json, closed_form.svg")


if __name__ == "__main__":
    main()
