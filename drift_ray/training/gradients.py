"""All gradients of a step in one flat tensor, with the step's sums at its end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


class GradientBuffer:
    """Gradients as views of one tensor: one all-reduce, one norm, no copy.

    A rank without samples in a step contributes zeros, so no rank waits for another. The sums
    ride along in the same all-reduce; they are float32, exact for counts up to 2^24.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], num_sums: int) -> None:
        """Make ``grad`` of every parameter a view; needs float32 parameters on one device."""
        sizes = [parameter.numel() for parameter in parameters]
        self._flat = torch.zeros(sum(sizes) + num_sums, device=parameters[0].device)
        self._gradients = self._flat[: sum(sizes)]
        self.sums: Tensor = self._flat[sum(sizes) :]
        """Shape ``[num_sums]``: what else is added up over micro-batches and ranks."""
        for parameter, view in zip(parameters, self._gradients.split(sizes), strict=True):
            parameter.grad = view.view_as(parameter)

    def zero(self) -> None:
        """Start a step; ``backward`` then adds in place."""
        self._flat.zero_()

    def all_reduce(self) -> None:
        """Add up over all ranks; nothing to do outside a process group."""
        if dist.is_initialized():
            dist.all_reduce(self._flat)

    def clip(self, max_norm: float) -> float:
        """Scale the gradients down to a global L2 norm and return the norm they had."""
        norm = self._gradients.norm()
        self._gradients.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return float(norm)
