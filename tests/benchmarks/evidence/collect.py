"""What experiments found, from their records alone: rates, intervals, costs and comparisons.

Prompts are the clusters of every interval: a prompt's trajectories, of all samples and seeds,
count together. Seeds are few, so how far they are apart is shown beside it as least and most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from drift_ray.evaluation.intervals import clustered_interval, difference_interval
from tests.benchmarks.evidence.plan import ABLATION, DRIFT, FINAL

Record = Mapping[str, Any]
MAX_TURNS = 5
MODES = ("greedy", "sampled")


def choose(records: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """The settings of each method's best trial.

    The best has the highest mean of greedy and sampled success@5; among equals, of success@1.
    """
    best: dict[str, Record] = {}
    for record in records:
        rival = best.get(record["method"])
        if rival is None or score(record["points"][-1]) > score(rival["points"][-1]):
            best[record["method"]] = record
    return {method: dict(record["settings"]) for method, record in best.items()}


def score(point: Record) -> tuple[float, float]:
    """What tuning goes by: greater is better."""
    at_last, at_first = (
        float(np.mean([success_rate(point[mode], k) for mode in MODES])) for k in (MAX_TURNS, 1)
    )
    return at_last, at_first


def success_rate(evaluation: Record, k: int) -> float:
    """Share of trajectories that were solved within k turns."""
    turns = np.concatenate([*evaluation["first_success_turn"].values()])
    return float(np.mean((turns > 0) & (turns <= k)))


def collect(records: Sequence[Record]) -> dict[str, Any]:
    """All results, ready for JSON: by task, the methods and the ablations."""
    return {
        task: {
            "methods": _summaries(r for r in records if r["task"] == task and r["phase"] == FINAL),
            "ablations": _summaries(
                (r for r in records if r["task"] == task and r["phase"] in (ABLATION, FINAL)),
                only=DRIFT,
            ),
        }
        for task in dict.fromkeys(record["task"] for record in records)
    }


def _summaries(records: Iterable[Record], only: str | None = None) -> dict[str, Any]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        if only is None:
            groups.setdefault(record["method"], []).append(record)
        elif record["method"] == only:
            groups.setdefault(record["variant"], []).append(record)
    baseline = groups.get(DRIFT if only is None else "best")
    return {name: summarize(group, baseline) for name, group in groups.items()}


def summarize(records: Sequence[Record], drift: Sequence[Record] | None = None) -> dict[str, Any]:
    """One method over its seeds, and beside DRIFT where that is given."""
    last = [record["points"][-1] for record in records]
    found: dict[str, Any] = {
        "settings": records[0]["settings"],
        "seeds": [record["seed"] for record in records],
        "wall_s": float(np.mean([record["wall_s"] for record in records])),
        "cost": _mean_cost([point["cost"] for point in last]),
        "kl": _over_seeds([point["kl"]["mean"] for point in last]),
    }
    for mode in MODES:
        found[mode] = {
            "success_at": [
                {"k": k, **_success([p[mode] for p in last], k)} for k in range(1, MAX_TURNS + 1)
            ],
            "repeated_answers": _ratio([point[mode]["repeated_answers"] for point in last]),
        }
    found["curve"] = [_curve_point(points) for points in zip(*_points(records), strict=True)]
    if drift is not None:
        found["versus_drift"] = compare(records, drift)
        found["cost_to_reach_drift"] = cost_to_reach(records, drift)
    return found


def compare(records: Sequence[Record], baseline: Sequence[Record]) -> dict[str, Any]:
    """Paired differences of success@1 and success@5 from the baseline's, of the seeds both have.

    A prompt counts once, by the mean over seeds and samples.
    """
    by_seed = {record["seed"]: record["points"][-1] for record in baseline}
    pairs = [(r["points"][-1], by_seed[r["seed"]]) for r in records if r["seed"] in by_seed]
    found: dict[str, Any] = {}
    for mode in MODES if pairs else ():
        found[mode] = []
        for k in (1, MAX_TURNS):
            differences = np.mean(
                [_by_prompt(own[mode], k) - _by_prompt(other[mode], k) for own, other in pairs],
                axis=0,
            )
            num_samples = len(next(iter(pairs[0][0][mode]["first_success_turn"].values())))
            interval = difference_interval(differences, smallest=1 / (num_samples * len(pairs)))
            found[mode].append(
                {
                    "k": k,
                    "difference": interval.estimate,
                    "low": interval.low,
                    "high": interval.high,
                }
            )
    return found


def cost_to_reach(records: Sequence[Record], baseline: Sequence[Record]) -> list[dict[str, Any]]:
    """By seed: CPU seconds up to the first policy that was evaluated to be as good as DRIFT's.

    As good is a sampled success@5 of at least the baseline's of that seed; ``cpu_s`` is None where
    no policy of the method was, and ``ratio`` is over the baseline's own cost.
    """
    by_seed = {record["seed"]: record["points"][-1] for record in baseline}
    found = []
    for record in records:
        goal = by_seed.get(record["seed"])
        if goal is None:
            continue
        aim = success_rate(goal["sampled"], MAX_TURNS)
        reached = [
            cpu_seconds(point["cost"])
            for point in record["points"]
            if success_rate(point["sampled"], MAX_TURNS) >= aim
        ]
        cost = min(reached, default=None)
        whole = cpu_seconds(goal["cost"])
        ratio = None if cost is None or not whole else cost / whole
        found.append({"seed": record["seed"], "cpu_s": cost, "ratio": ratio})
    return found


def cpu_seconds(cost: Record) -> float:
    """Of sampling and training."""
    return float(cost["sampling_cpu_s"] + cost["training_cpu_s"])


def _points(records: Sequence[Record]) -> list[list[Record]]:
    return [record["points"] for record in records]


def _curve_point(points: Sequence[Record]) -> dict[str, Any]:
    costs = [cpu_seconds(point["cost"]) for point in points]
    return {
        "round": points[0]["round"],
        "cpu_s": float(np.mean(costs)),
        **{mode: _success([point[mode] for point in points], MAX_TURNS) for mode in MODES},
    }


def _success(evaluations: Sequence[Record], k: int) -> dict[str, Any]:
    solved, prompts = [], []
    for evaluation in evaluations:
        for prompt, turns in evaluation["first_success_turn"].items():
            solved += [0 < turn <= k for turn in turns]
            prompts += [prompt] * len(turns)
    interval = clustered_interval(np.array(solved), prompts)
    seeds = [success_rate(evaluation, k) for evaluation in evaluations]
    return {
        "estimate": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "least": min(seeds),
        "most": max(seeds),
    }


def _by_prompt(evaluation: Record, k: int) -> npt.NDArray[np.float64]:
    turns = evaluation["first_success_turn"]
    rows = np.array([turns[prompt] for prompt in sorted(turns)])
    return ((rows > 0) & (rows <= k)).mean(axis=1)


def _ratio(shares: Sequence[Record]) -> float | None:
    num_turns = sum(share["num_turns"] for share in shares)
    return sum(share["num"] for share in shares) / num_turns if num_turns else None


def _over_seeds(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "least": min(values), "most": max(values)}


def _mean_cost(costs: Sequence[Record]) -> dict[str, float]:
    return {name: float(np.mean([cost[name] for cost in costs])) for name in costs[0]}
