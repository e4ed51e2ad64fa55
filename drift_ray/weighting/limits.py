"""What is taken from weights on purpose, after the formula: failed groups, the largest, the least.

Each is a choice and biases the weights; how much mass it takes is part of the summary. Nothing is
scaled up in return: where a limit bites, a group's mean is no longer one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drift_ray.config import WeightingConfig
from drift_ray.weighting.groups import Floats
from drift_ray.weighting.weightings import Rows


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Limited:
    """Weights after all limits, and the mass Σ|w| each of them took."""

    importance_weight: Floats
    """Shape ``[N]``."""
    removed: dict[str, Floats]
    """By the setting's name, shape ``[num_groups]``, >= 0."""


def limit(importance_weight: Floats, rows: Rows, config: WeightingConfig) -> Limited:
    """Apply ``all_failed``, then ``clip``, then ``min_importance_weight``.

    Args:
        importance_weight: Shape ``[N]``; signed ones are limited by their size.
        rows: The same N trajectories.
        config: With the limits.
    """
    groups = rows.groups
    after = [np.asarray(importance_weight, dtype=np.float64)]
    if config.all_failed != "keep":
        factor = 0.0 if config.all_failed == "drop" else config.all_failed_scale
        any_solved = groups.spread(groups.any(rows.solved))
        after.append(np.where(any_solved, after[-1], factor * after[-1]))
    else:
        after.append(after[-1])
    bound = np.inf if config.clip is None else config.clip
    after.append(np.clip(after[-1], -bound, bound))
    after.append(np.where(np.abs(after[-1]) >= config.min_importance_weight, after[-1], 0.0))
    mass = [groups.sum(np.abs(weight)) for weight in after]
    return Limited(
        importance_weight=after[-1],
        removed={
            name: np.maximum(before - left, 0.0)
            for name, before, left in zip(
                ("all_failed", "clip", "min_importance_weight"), mass, mass[1:], strict=False
            )
        },
    )
