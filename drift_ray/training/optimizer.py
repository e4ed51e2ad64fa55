"""AdamW, and the learning rate as a function of the step alone."""

from __future__ import annotations

import math

import torch
from torch import nn

from drift_ray.config import TrainingConfig


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over what is trainable; matrices decay, biases and norms do not.

    One fused kernel a step, which torch has for every device that this package trains on.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(step: int, num_steps: int, config: TrainingConfig) -> float:
    """The learning rate of a step.

    It rises linearly over ``ceil(warmup_frac * num_steps)`` steps, the last of which has the full
    rate, and would reach ``min_learning_rate_frac`` of it one step after the last: no step is
    without effect.

    Args:
        step: 0-based.
        num_steps: Steps of the whole training.
        config: ``schedule``, ``learning_rate``, ``warmup_frac`` and ``min_learning_rate_frac``.
    """
    num_warmup = max(1, math.ceil(config.warmup_frac * num_steps))
    if step < num_warmup or config.schedule == "constant":
        return config.learning_rate * min(1.0, (step + 1) / num_warmup)
    progress = (step + 1 - num_warmup) / (num_steps + 1 - num_warmup)
    left = (1 + math.cos(math.pi * progress)) / 2 if config.schedule == "cosine" else 1 - progress
    low = config.min_learning_rate_frac
    return config.learning_rate * (low + (1 - low) * left)
