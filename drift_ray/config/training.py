"""Importance-weighted fine-tuning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from drift_ray.config.section import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section


class TrainingConfig(Section):
    """Importance-weighted supervised fine-tuning."""

    num_workers: PositiveInt = 2
    """Processes that share every step."""
    num_cpus: PositiveFloat = 1.0
    """CPUs a worker; also its threads when it has no GPU."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs a worker."""
    num_epochs: PositiveInt = 1
    """Passes over the trajectories."""
    batch_size: PositiveInt = 64
    """Trajectories a step over all workers."""
    micro_batch_tokens: PositiveInt = 8192
    """Padded tokens a worker puts through the model at once."""
    learning_rate: PositiveFloat = 5e-6
    """Of AdamW, after warm-up."""
    warmup_frac: Fraction = 0.1
    """Share of the steps with linear warm-up; constant afterwards."""
    weight_decay: NonNegativeFloat = 0.1
    """Of matrices; biases and norms do not decay."""
    max_grad_norm: PositiveFloat = 1.0
    """The gradient of a step is scaled down to this L2 norm."""
    loss_turns: Literal["last", "all"] = "last"
    """Assistant turns that carry loss; ``all`` is the closed form, ``last`` the reference's."""
    token_reduction: Literal["mean", "sum"] = "mean"
    """NLL of a trajectory: mean or sum over its loss tokens."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters and optimizer state stay float32."""
    checkpoint_every_steps: PositiveInt = 100
    """Besides the last step, which is always saved."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Worker failures survived by restarting from the last checkpoint."""
