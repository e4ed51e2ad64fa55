"""When to stop: a pure decision on the held-out losses so far, and the state it needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from drift_ray.config import EarlyStoppingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutRecord:
    """The best held-out loss so far; part of every checkpoint, so a resumed run decides alike."""

    best_loss: float = math.inf
    best_step: int = 0
    """Steps made when it was measured."""
    num_worse: int = 0
    """Evaluations since, none of them better."""

    def add(self, loss: float, step: int, config: EarlyStoppingConfig) -> HeldOutRecord:
        """The record after one more evaluation.

        Args:
            loss: Held-out loss; one that is not finite is never better.
            step: Steps made.
            config: An improvement smaller than ``min_delta`` is none.
        """
        if loss < self.best_loss - config.min_delta:
            return HeldOutRecord(best_loss=loss, best_step=step)
        return HeldOutRecord(
            best_loss=self.best_loss, best_step=self.best_step, num_worse=self.num_worse + 1
        )

    def is_over(self, config: EarlyStoppingConfig) -> bool:
        """Whether ``patience`` evaluations in a row were no better."""
        return self.num_worse >= config.patience
