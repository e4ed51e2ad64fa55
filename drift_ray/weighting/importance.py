"""Importance weights: how much likelier the optimal policy makes a trajectory.

The KL-regularised optimum is π*(τ|x) = π_ref(τ|x)·exp(R(τ)/β)/Z(x), so a sample of π_ref counts
w = exp(R/β)/Z(x) times in its likelihood. Z is estimated by the mean over the group, the
trajectories of one prompt (DRIFT, arXiv 2605.31455). Hence every group has mean weight one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from drift_ray.errors import DataError
from drift_ray.weighting.groups import Floats, Groups


def importance_weights(shaped_return: Floats, groups: Groups, *, beta: float | Floats) -> Floats:
    """w_i = exp(R_i/β) / mean_j exp(R_j/β), the mean taken over the group of i.

    The greatest return of the group is subtracted first: nothing overflows, and the divisor is at
    least 1/group size, so no guard against zero is needed (the DRIFT reference adds 1e-12 to it).
    As β → 0 the best of a group share its weight alike; as β → ∞ all weights become 1. A group of
    one, or one whose returns are all alike, has weights 1 for every β.

    Args:
        shaped_return: Shape ``[N]``.
        groups: Of the N rows.
        beta: Temperature, > 0, of all groups or of each (shape ``[num_groups]``).

    Returns:
        Shape ``[N]``, >= 0, mean one in every group.

    Raises:
        ValueError: ``beta`` is not positive and finite.
        DataError: A return is NaN or infinite; names rows.
    """
    exponent = relative_return(shaped_return, groups)
    with np.errstate(over="ignore", under="ignore"):  # exp(-inf) = 0 is what is meant
        exponent /= _per_row(beta, groups)
        unnormalised = np.exp(exponent, out=exponent)
    unnormalised /= groups.spread(groups.mean(unnormalised))
    return unnormalised


def relative_return(shaped_return: Floats, groups: Groups) -> Floats:
    """R_i minus the greatest return of its group: a new array of shape ``[N]``, <= 0.

    Raises:
        DataError: A return is NaN or infinite; names rows.
    """
    returns = np.asarray(shaped_return, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(returns))
    if len(bad):
        rows = ", ".join(f"row {i}: {returns[i]}" for i in bad[:5])
        raise DataError(
            f"{len(bad)} of {len(returns)} returns are not finite: {rows}.",
            "Find the reward or penalty they were made of.",
        )
    return returns - groups.spread(groups.max(returns))


def ess(importance_weight: Floats, groups: Groups) -> Floats:
    """Effective sample size (Σ|w|)²/Σw² of every group (Kish, Survey Sampling, 1965).

    From 1 (one trajectory has all the weight) to the group's size (all alike); 0 where all
    weights are 0. Signed weights count by their size.

    Returns:
        Shape ``[num_groups]``.
    """
    # Relative to the greatest, lest the squares of small weights vanish.
    size = np.abs(importance_weight)
    greatest = groups.max(size)
    size = size / groups.spread(np.where(greatest > 0, greatest, 1.0))
    squares = groups.sum(np.square(size))
    return np.divide(groups.sum(size) ** 2, squares, out=np.zeros(len(groups)), where=squares > 0)


def kl_divergence(importance_weight: Floats, groups: Groups) -> Floats:
    """Mean of w·log w over every group, with w scaled to mean one: estimates KL(π*‖π_ref), nats.

    Between 0 (all alike) and log(group size) (one has all the weight): a true divergence beyond
    that cannot be seen in so few samples. 0 where all weights are 0.

    Returns:
        Shape ``[num_groups]``.
    """
    mean = groups.mean(importance_weight)
    weight = importance_weight / groups.spread(np.where(mean > 0, mean, 1.0))
    w_log_w = weight * np.log(weight, out=np.zeros_like(weight), where=weight > 0)
    return np.maximum(groups.mean(w_log_w), 0.0)


def _per_row(beta: float | Floats, groups: Groups) -> Floats:
    values: npt.NDArray[np.float64] = np.asarray(beta, dtype=np.float64)
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"beta must be positive and finite, not {beta}")
    return groups.spread(values) if values.ndim else values
