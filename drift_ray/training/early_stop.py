"""When to stop: a pure decision on the held-out losses so far, and the state it needs.

The best parameters are kept beside the optimizer's moments: sharded, saved and restored like them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from drift_ray.config import EarlyStoppingConfig

BEST = "best"
"""Name of the best parameters in the optimizer's state."""


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


NOTHING_MEASURED = HeldOutRecord()


def keep_best(optimizer: torch.optim.Optimizer) -> None:
    """Copy the parameters as they are; only after a step, which fills the optimizer's state."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter][BEST] = parameter.detach().clone()


@torch.no_grad()
def restore_best(optimizer: torch.optim.Optimizer) -> None:
    """Put the parameters back as they were at :func:`keep_best`."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.copy_(optimizer.state[parameter][BEST])
