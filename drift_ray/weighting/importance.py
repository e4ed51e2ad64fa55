"""Importance weights: how much likelier the optimal policy makes a trajectory.

The KL-regularised optimum is π*(τ|x) = π_ref(τ|x)·exp(R(τ)/β)/Z(x), so a sample of π_ref counts
w = exp(R/β)/Z(x) times in its likelihood. Z is estimated by the mean over the group, the
trajectories of one prompt (DRIFT, arXiv 2605.31455). Hence every group has mean weight one.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from drift_ray.errors import DataError

Floats = npt.NDArray[np.float64]


def importance_weights(shaped_return: Floats, group_ids: npt.ArrayLike, *, beta: float) -> Floats:
    """w_i = exp(R_i/β) / mean_j exp(R_j/β), the mean taken over the group of i.

    The greatest return of the group is subtracted first: nothing overflows, and the divisor is at
    least 1/group size, so no guard against zero is needed (the DRIFT reference adds 1e-12 to it).

    Args:
        shaped_return: Shape ``[N]``.
        group_ids: Shape ``[N]``, strings or integers, in any order.
        beta: Temperature, > 0. Small ones single out the best trajectories of a group, large ones
            weigh all alike.

    Returns:
        Shape ``[N]``, >= 0, mean one in every group.

    Raises:
        ValueError: ``beta`` is not a positive finite number.
        DataError: A return is NaN or infinite; names rows and groups.
    """
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta must be a positive finite number, not {beta}")
    returns = np.asarray(shaped_return, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(returns))
    if len(bad):
        rows = ", ".join(
            f"row {i} (group {np.asarray(group_ids)[i]!s}): {returns[i]}" for i in bad[:5]
        )
        raise DataError(
            f"{len(bad)} of {len(returns)} shaped returns are not finite: {rows}",
            hint="find the reward or penalty they were made of in the rollout part",
        )
    codes, num_groups = group_codes(group_ids)
    greatest = np.full(num_groups, -np.inf)
    np.maximum.at(greatest, codes, returns)
    with np.errstate(over="ignore", under="ignore"):  # exp(-inf) = 0 is what is meant
        unnormalised = np.exp((returns - greatest[codes]) / beta)
    size = np.bincount(codes, minlength=num_groups)
    mean = np.bincount(codes, weights=unnormalised, minlength=num_groups) / size
    return unnormalised / mean[codes]


def drop_all_failed(
    importance_weight: Floats, group_ids: npt.ArrayLike, solved: npt.NDArray[np.bool_]
) -> Floats:
    """Weight 0 for every trajectory of a group in which none was solved, else unchanged.

    Without success a group's weights only tell wrong answers apart, yet sum up to as much as those
    of any other group. To drop them is a choice (``all_failed: drop``), not part of the optimum.

    Args:
        importance_weight: Shape ``[N]``.
        group_ids: Shape ``[N]``.
        solved: Shape ``[N]``, whether a turn of the trajectory succeeded.
    """
    codes, num_groups = group_codes(group_ids)
    any_solved = np.bincount(codes, weights=solved, minlength=num_groups) > 0
    return np.where(any_solved[codes], importance_weight, 0.0)


def ess(importance_weight: Floats, group_ids: npt.ArrayLike) -> Floats:
    """Effective sample size (Σw)²/Σw² of every group (Kish, Survey Sampling, 1965).

    From 1 (one trajectory has all the weight) to the group's size (all alike); 0 where all
    weights are 0.

    Returns:
        Shape ``[num_groups]``, groups in order of first appearance.
    """
    codes, num_groups = group_codes(group_ids)
    total = np.bincount(codes, weights=importance_weight, minlength=num_groups)
    squares = np.bincount(codes, weights=np.square(importance_weight), minlength=num_groups)
    return np.divide(total**2, squares, out=np.zeros(num_groups), where=squares > 0)


def group_codes(group_ids: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], int]:
    """Number groups 0, 1, … in order of first appearance.

    Returns:
        The number of each row's group, and how many groups there are.
    """
    encoded = pa.array(np.asarray(group_ids)).dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), len(encoded.dictionary)
