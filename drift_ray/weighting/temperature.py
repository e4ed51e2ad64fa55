"""β by meaning: the temperature that gives the weights a wanted spread.

Both spreads move one way with β, so bisection finds it:

- ESS/G = (mean e^(R/β))² / mean e^(2R/β) never falls as β grows: with λ = 1/β,
  d log ESS/dλ = 2·(E_λ[R] - E_2λ[R]) <= 0, E_λ being the mean under weights ∝ e^(λR).
- KL(π*‖π_ref) never grows with β: dKL/dλ = λ·Var_λ[R] >= 0.

``kl`` solves the dual of  max_π E_π[R]  subject to  KL(π‖π_ref) <= ε  (relative entropy policy
search: Peters, Mülling, Altün, AAAI 2010; per state and from samples: MPO, arXiv 1806.06920):
the minimum over β > 0 of  g(β) = β·ε + β·log mean e^(R/β),  whose derivative ε - KL(β) vanishes
where the divergence is the wanted one. For the run, KL is the mean over groups.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from drift_ray.weighting.groups import Floats, Groups
from drift_ray.weighting.importance import relative_return

BETA_RANGE = (1e-3, 1e3)
"""Where β is sought."""
# Halvings of the range's logarithm (13.8): β is exact to a relative 1e-12.
_NUM_HALVINGS = 44
# exp() is 0 from here on; minus infinity times 0 would be no number.
_LEAST_EXPONENT = -745.2

Measure = Literal["ess_frac", "kl"]


def solve_beta(
    shaped_return: Floats,
    groups: Groups,
    *,
    measure: Measure,
    target: float,
    per_group: bool,
) -> Floats:
    """Find the β at which a measure of the weights has the wanted value.

    Returns that are all alike, or ties among the best, can put that value out of reach: β is the
    nearest end of :data:`BETA_RANGE` then.

    Args:
        shaped_return: Shape ``[N]``, finite.
        groups: Of the N rows.
        measure: ``ess_frac``: ESS over group size; ``kl``: KL(π*‖π_ref) in nats.
        target: Its value: in every group, or as the mean over groups.
        per_group: Whether each group has a β of its own.

    Returns:
        Shape ``[num_groups]``; all alike unless ``per_group``.
    """
    if not len(groups):
        return np.empty(0)
    relative = relative_return(shaped_return, groups)
    low, high = np.log(BETA_RANGE)
    shape = len(groups) if per_group else 1
    lower, upper = np.full(shape, low), np.full(shape, high)
    for _ in range(_NUM_HALVINGS):
        middle = (lower + upper) / 2
        found = _measure(relative, groups, np.exp(middle), measure)
        too_sharp = found < target if measure == "ess_frac" else found > target
        lower, upper = np.where(too_sharp, middle, lower), np.where(too_sharp, upper, middle)
    return np.broadcast_to(np.exp((lower + upper) / 2), len(groups))


def _measure(relative: Floats, groups: Groups, beta: Floats, measure: Measure) -> Floats:
    """The measure of every group if there is a β for each, else its mean over groups."""
    with np.errstate(over="ignore", under="ignore"):
        exponent = relative / (groups.spread(beta) if len(beta) > 1 else beta)
        exponent = np.maximum(exponent, _LEAST_EXPONENT)
        likelihood = np.exp(exponent)
    total = groups.sum(likelihood)
    if measure == "ess_frac":
        found = total**2 / groups.sum(np.square(likelihood)) / groups.sizes
    else:
        found = groups.sum(likelihood * exponent) / total - np.log(total / groups.sizes)
    return found if len(beta) > 1 or len(groups) == 1 else found.mean(keepdims=True)
