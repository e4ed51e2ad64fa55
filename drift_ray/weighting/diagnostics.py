"""What the weights do to the data, before any GPU hour is spent on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from drift_ray.weighting.importance import Floats, ess, group_codes

NEVER = "never"


def summarize(
    *,
    group_ids: npt.ArrayLike,
    importance_weight: Floats,
    shaped_return: Floats,
    first_success_turn: npt.NDArray[np.integer],
) -> dict[str, Any]:
    """Summarise a weighted set of trajectories.

    Means are over groups, each counting the same. A group that carries no weight (see
    ``drop_all_failed``) has no ESS, share, expected return or KL and is left out of theirs; if no
    group carries weight they are None.

    Args:
        group_ids: Shape ``[N]``, strings or integers.
        importance_weight: Shape ``[N]``.
        shaped_return: Shape ``[N]``.
        first_success_turn: Shape ``[N]``, 1-based, below 1 = never.

    Returns:
        Ready for JSON:

        - ``num_groups``, ``num_trajectories``, ``num_weightless_groups``, ``all_failed_frac`` and
          ``all_solved_frac`` (of the groups);
        - ``ess``: ``mean`` and ``min``, in trajectories;
        - ``ess_frac``: ESS over group size: ``mean`` and the quantiles ``p10``, ``p50``, ``p90``;
        - ``largest_share``: the greatest weight over the group's sum: ``mean`` and ``max``;
        - ``trajectory_frac_by_first_success_turn`` and ``weight_frac_by_first_success_turn``: the
          share of trajectories, and of all weight, by "1", "2", …, "never";
        - ``expected_return``: of the ``reference`` policy, and ``weighted`` (self-normalised
          importance sampling): an estimate for the optimum that training aims at;
        - ``kl_estimate``: mean of w·log w, estimating KL(π*‖π_ref) in nats; at most the logarithm
          of the group size, so it is too low when ``ess_frac`` is small.
    """
    codes, num_groups = group_codes(group_ids)
    weight = np.asarray(importance_weight, dtype=np.float64)
    size = np.bincount(codes, minlength=num_groups)
    solved = np.bincount(codes, weights=first_success_turn >= 1, minlength=num_groups)
    total = _sums(weight, codes, num_groups)
    carries = total > 0
    scale = np.where(carries, total, 1.0)
    sample_size = ess(weight, group_ids)[carries]
    ess_frac = sample_size / size[carries]
    largest = np.zeros(num_groups)
    np.maximum.at(largest, codes, weight / scale[codes])
    reference = (_sums(shaped_return, codes, num_groups) / np.maximum(size, 1))[carries]
    weighted = (_sums(weight * shaped_return, codes, num_groups) / scale)[carries]
    w_log_w = weight * np.log(weight, out=np.zeros_like(weight), where=weight > 0)
    kl = (_sums(w_log_w, codes, num_groups) / np.maximum(size, 1))[carries]
    return {
        "num_groups": num_groups,
        "num_trajectories": len(weight),
        "num_weightless_groups": int(np.count_nonzero(~carries)),
        "all_failed_frac": _mean(solved == 0),
        "all_solved_frac": _mean(solved == size),
        "ess": {"mean": _mean(sample_size), "min": _quantile(sample_size, 0.0)},
        "ess_frac": {
            "mean": _mean(ess_frac),
            "p10": _quantile(ess_frac, 0.1),
            "p50": _quantile(ess_frac, 0.5),
            "p90": _quantile(ess_frac, 0.9),
        },
        "largest_share": {
            "mean": _mean(largest[carries]),
            "max": _quantile(largest[carries], 1.0),
        },
        "trajectory_frac_by_first_success_turn": _by_turn(first_success_turn, np.ones_like(weight)),
        "weight_frac_by_first_success_turn": _by_turn(first_success_turn, weight),
        "expected_return": {"reference": _mean(reference), "weighted": _mean(weighted)},
        "kl_estimate": _mean(kl),
    }


def _sums(values: Floats, codes: npt.NDArray[np.int64], num_groups: int) -> Floats:
    return np.bincount(codes, weights=values, minlength=num_groups).astype(np.float64)


def _by_turn(first_success_turn: npt.NDArray[np.integer], mass: Floats) -> dict[str, float]:
    turn = np.maximum(first_success_turn, 0)
    sums = np.bincount(turn, weights=mass, minlength=1)
    shares = (sums / (mass.sum() or 1.0)).tolist()
    return {str(k): share for k, share in enumerate(shares[1:], 1)} | {NEVER: shares[0]}


def _mean(values: npt.NDArray[Any]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _quantile(values: Floats, q: float) -> float | None:
    return float(np.quantile(values, q)) if len(values) else None
