"""Success by turn, with intervals that know which samples belong together.

Samples of one prompt resemble each other, so the prompts, not the trajectories, are what was
drawn at random. Every rate carries the counts it was made of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from drift_ray.errors import DataError

Ints = npt.NDArray[np.integer]


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A proportion and its confidence interval; low <= estimate <= high, all in [0, 1]."""

    estimate: float
    low: float
    high: float


def clustered_interval(
    success: npt.NDArray[np.bool_], clusters: npt.ArrayLike, *, confidence: float = 0.95
) -> Interval:
    """Interval of a mean of 0/1 values that were drawn cluster by cluster.

    Wilson's interval at the effective sample size n_eff = n / deff. The design effect deff is the
    cluster-robust variance of the mean over the variance of independent draws:

        deff = [C/(C-1) · Σ_c (Σ_{i∈c} (y_i - ȳ))² / n²] / [ȳ(1-ȳ) / (n-1)],   deff >= 1

    with C clusters; for one draw a cluster it is 1 and this is the plain Wilson interval. Where
    the data cannot tell (ȳ is 0 or 1, or C = 1), draws of a cluster count as copies of each other:
    n_eff = (Σm_c)²/Σm_c² for cluster sizes m_c. Unlike estimate ± 1.96·SE it stays within [0, 1]
    and keeps a width at 0 and 1. With few clusters it covers a little less than it says, as all
    intervals with an estimated deff.

    Sources: clustered standard errors of evaluations, Miller, arXiv 2411.00640 (2024); Wilson with
    an effective sample size, Franco, Little, Louis & Slud, J. Survey Stat. Methodol. 7 (2019) 334.

    Args:
        success: Shape ``[n]``, n >= 1.
        clusters: Shape ``[n]``, the cluster of every value.
        confidence: Coverage aimed at.
    """
    values = np.asarray(success, dtype=np.float64)
    n = len(values)
    _, codes, sizes = np.unique(np.asarray(clusters), return_inverse=True, return_counts=True)
    mean = float(values.mean())
    num_clusters = len(sizes)
    if num_clusters > 1 and 0.0 < mean < 1.0:
        residuals = np.bincount(codes, weights=values - mean)
        clustered = num_clusters / (num_clusters - 1) * np.square(residuals).sum() / n**2
        n_eff = n / max(1.0, clustered / (mean * (1.0 - mean) / (n - 1)))
    else:
        n_eff = n**2 / float(np.square(sizes).sum())
    return _wilson(mean, n_eff, NormalDist().inv_cdf(0.5 + confidence / 2))


def success_metrics(
    prompt_ids: npt.ArrayLike,
    first_success_turn: Ints,
    num_turns: Ints,
    *,
    max_turns: int,
) -> dict[str, Any]:
    """What was solved, turn by turn.

    Args:
        prompt_ids: Shape ``[N]``, N >= 1; the clusters of the intervals.
        first_success_turn: Shape ``[N]``, 1-based, below 1 = never.
        num_turns: Shape ``[N]``, turns played; no turn follows a success.
        max_turns: The turns to report; later ones are left out.

    Returns:
        Ready for JSON: ``num_prompts``, ``num_trajectories``, ``max_turns`` and the lists

        - ``success_at``, k = 1…max_turns: ``k``, ``num_correct`` and ``estimate`` (the share solved
          within k turns) with its 95 % interval ``low``, ``high``;
        - ``per_turn``, 1…max_turns: ``num_attempts``, ``num_correct`` and their ``accuracy``;
        - ``correction_rate``, turns 2…max_turns: ``num_wrong_before`` (reached the turn, hence
          wrong so far), ``num_corrected`` and their ``rate``.

        A rate of nothing is None.
    """
    prompts, codes = np.unique(np.asarray(prompt_ids), return_inverse=True)
    solved_at = np.bincount(np.maximum(first_success_turn, 0), minlength=max_turns + 1)
    played = np.bincount(num_turns, minlength=max_turns + 1)
    correct, attempts = solved_at[1:], len(num_turns) - np.cumsum(played)
    per_turn = [
        {"turn": k, "num_attempts": a, "num_correct": c, "accuracy": _ratio(c, a)}
        for k, a, c in zip(
            range(1, max_turns + 1),
            attempts[:max_turns].tolist(),
            correct[:max_turns].tolist(),
            strict=True,
        )
    ]
    return {
        "num_prompts": len(prompts),
        "num_trajectories": len(num_turns),
        "max_turns": max_turns,
        "success_at": [
            _success_at(k, codes, (first_success_turn >= 1) & (first_success_turn <= k))
            for k in range(1, max_turns + 1)
        ],
        "per_turn": per_turn,
        "correction_rate": [
            {
                "turn": row["turn"],
                "num_wrong_before": row["num_attempts"],
                "num_corrected": row["num_correct"],
                "rate": row["accuracy"],
            }
            for row in per_turn[1:]
        ],
    }


def repeated_turns(
    answer_norms: pa.Array, answer_offsets: Ints, turn_offsets: Ints
) -> npt.NDArray[np.bool_]:
    """Whether a turn says nothing new: it answers, and an earlier turn gave each of its answers.

    Args:
        answer_norms: Flat normalised answers of all turns of all trajectories.
        answer_offsets: Shape ``[num_turns + 1]``: where the answers of each turn begin and end.
        turn_offsets: Shape ``[num_trajectories + 1]``: the same for the turns of each trajectory.

    Returns:
        Shape ``[num_turns]``.
    """
    num_turns = len(answer_offsets) - 1
    counts = np.diff(answer_offsets)
    turn = np.repeat(np.arange(num_turns), counts)
    trajectory = np.repeat(np.arange(len(turn_offsets) - 1), np.diff(turn_offsets))[turn]
    used = answer_norms.slice(answer_offsets[0], len(turn)).dictionary_encode()
    pair = trajectory * len(used.dictionary) + used.indices.to_numpy(zero_copy_only=False)
    # np.unique reports where a pair occurs first, and turns stand in order.
    _, first, which = np.unique(pair, return_index=True, return_inverse=True)
    old = turn[first][which] < turn
    return (counts > 0) & (np.bincount(turn, weights=old, minlength=num_turns) == counts)


def evaluation_metrics(table: pa.Table, *, max_turns: int) -> dict[str, Any]:
    """All metrics of a set of trajectories.

    Args:
        table: At least one row, columns ``prompt_id``, ``first_success_turn`` (null = never),
            ``num_turns`` and ``turns`` (with ``answer_norms`` and ``format_ok``).
        max_turns: The turns to report success for.

    Returns:
        :func:`success_metrics`, and the two entries below, each with ``num_turns`` (how many it
        is a share of), ``num`` and ``rate``:

        - ``repeated_answers``: of turns >= 2, those that only repeat (:func:`repeated_turns`);
        - ``format_failures``: of all turns, those without a parseable answer.

    Raises:
        DataError: The table is empty.
    """
    if not table.num_rows:
        raise DataError("no trajectories to evaluate", hint="look into the stage's failures folder")
    turns = table["turns"].combine_chunks()
    turn_offsets = turns.offsets.to_numpy()
    begin, end = int(turn_offsets[0]), int(turn_offsets[-1])
    played = turns.values.slice(begin, end - begin)
    norms = pc.struct_field(played, "answer_norms")
    repeated = repeated_turns(norms.values, norms.offsets.to_numpy(), turn_offsets)
    num_turns = np.diff(turn_offsets)
    num_later = int(np.maximum(num_turns - 1, 0).sum())
    num_bad = pc.sum(pc.invert(pc.struct_field(played, "format_ok")), min_count=0).as_py()
    return {
        **success_metrics(
            table["prompt_id"].to_numpy(),
            table["first_success_turn"].fill_null(0).to_numpy(),
            num_turns,
            max_turns=max_turns,
        ),
        "repeated_answers": _share(int(repeated.sum()), num_later),
        "format_failures": _share(num_bad, int(num_turns.sum())),
    }


def _wilson(mean: float, n: float, z: float) -> Interval:
    """Wilson, JASA 22 (1927) 209; clipped, as rounding may miss the estimate at 0 and 1."""
    shrink = 1.0 + z**2 / n
    centre = (mean + z**2 / (2 * n)) / shrink
    half = z / shrink * math.sqrt(mean * (1.0 - mean) / n + (z / (2 * n)) ** 2)
    return Interval(
        estimate=mean,
        low=max(0.0, min(mean, centre - half)),
        high=min(1.0, max(mean, centre + half)),
    )


def _success_at(k: int, prompts: Ints, success: npt.NDArray[np.bool_]) -> dict[str, float]:
    interval = clustered_interval(success, prompts)
    return {
        "k": k,
        "num_correct": int(success.sum()),
        "estimate": interval.estimate,
        "low": interval.low,
        "high": interval.high,
    }


def _share(num: int, num_turns: int) -> dict[str, Any]:
    return {"num": num, "num_turns": num_turns, "rate": _ratio(num, num_turns)}


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
