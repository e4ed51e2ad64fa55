"""A model in training: how a step is taken, and what is known of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from drift_ray.config import TrainingConfig
from drift_ray.errors import StageError
from drift_ray.training.checkpoint import CheckpointState, load_checkpoint
from drift_ray.training.data import TrainingData
from drift_ray.training.loss import WeightedNLL
from drift_ray.training.monitors import (
    count_flops,
    effective_samples,
    peak_flops,
    peak_memory_gib,
)
from drift_ray.training.optimizer import build_optimizer
from drift_ray.training.parallel import clip_grad_norm, parallelize
from drift_ray.training.passes import BatchSums, batch_gradient, evaluate


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMetrics:
    """What one step did, over all ranks."""

    step: int
    """0-based."""
    num_steps: int
    """Steps of the whole training; as many as are expected while trajectories are still sampled."""
    loss: float
    """Mean over the batch of w_i · reduce_t NLL_it, before the step."""
    nll: float
    """Mean over loss tokens, unweighted, nats."""
    kl_ref: float | None
    """Mean over loss tokens of log π_ref - log π_θ, nats; near 0 at step 0. None where a sample's
    engine did not tell log π_ref."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    num_samples: int
    ess: float
    """Effective samples of the batch, (Σ|w|)²/Σw²."""
    num_tokens: int
    """Tokens that went through the model, padding not counted."""
    num_loss_tokens: int
    step_s: float
    """Without the held-out evaluation."""
    cpu_s: float
    """CPU seconds of all ranks since their step before, or since training began."""
    tokens_per_s: float
    mfu: float | None
    """Share of the GPUs' dense bfloat16 peak that went into the model's own FLOPs; None where one
    of the two is not known."""
    peak_memory_gib: float
    """Of this rank: tensors on its GPU, else its whole process."""
    held_out_loss: float | None
    """As ``loss``, over the held-out samples and after the step; None where it is not measured."""


class Taken(NamedTuple):
    """What a step gave."""

    sums: BatchSums
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    step_s: float


class Learner:
    """A model in training with its optimizer: takes steps, whatever they are made of.

    Every rank of the default ``torch.distributed`` group calls everything alike.
    """

    def __init__(
        self, model: PreTrainedModel, config: TrainingConfig, device: torch.device | None = None
    ) -> None:
        """Share the model among the ranks.

        Args:
            model: float32 parameters, trained in place.
            config: Hyperparameters.
            device: Where to train, if not where the model is.
        """
        self.model, self._config = model, config
        self._flops = count_flops(model)
        self._module = parallelize(WeightedNLL(model), config, device)
        self.optimizer = build_optimizer(model, config)
        self._cpu_since_s = time.process_time()

    def forget_moments(self) -> None:
        """Go on with an optimizer that has seen no gradient."""
        self.optimizer = build_optimizer(self.model, self._config)

    def resume(self, folder: Path, *, data: str, digest: str) -> CheckpointState:
        """Go on from a checkpoint. Raises as :func:`load_checkpoint`."""
        return load_checkpoint(folder, self.model, self.optimizer, data=data, digest=digest)

    def step(
        self,
        data: TrainingData,
        batch: npt.NDArray[np.int64],
        *,
        step: int,
        rate: float,
        due: bool,
    ) -> Taken:
        """One step of the optimizer.

        Args:
            data: All samples.
            batch: Which of them, over all ranks.
            step: Its number.
            rate: Of learning.
            due: Whether this rank wants a checkpoint.

        Raises:
            StageError: The gradient is not finite; all ranks raise alike.
        """
        started = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        sums = batch_gradient(
            self._module, data, batch, self._config, due=due, cpu_since_s=self._cpu_since_s
        )
        self._cpu_since_s = time.process_time()
        grad_norm = clip_grad_norm(self._module, self._config.max_grad_norm)
        if not math.isfinite(grad_norm):
            raise StageError(
                f"The gradient of training step {step} is not finite ({grad_norm}).",
                "Lower training.learning_rate, or train with training.dtype=float32.",
            )
        self.optimizer.step()
        return Taken(sums, grad_norm, rate, time.perf_counter() - started)

    def evaluate(self, held_out: TrainingData) -> float:
        """See :func:`drift_ray.training.passes.evaluate`."""
        return evaluate(self._module, held_out, self._config)

    def metrics(
        self,
        taken: Taken,
        data: TrainingData,
        batch: npt.NDArray[np.int64],
        *,
        step: int,
        num_steps: int,
        held_out_loss: float | None = None,
    ) -> StepMetrics:
        """What a step did, for people and files."""
        sums, step_s = taken.sums, taken.step_s
        weight = data.importance_weight[batch]
        return StepMetrics(
            step=step,
            num_steps=num_steps,
            loss=sums.loss / len(weight),
            nll=sums.nll / sums.num_loss_tokens,
            kl_ref=None if math.isnan(sums.kl_ref) else sums.kl_ref / sums.num_loss_tokens,
            grad_norm=taken.grad_norm,
            learning_rate=taken.learning_rate,
            num_samples=len(weight),
            ess=effective_samples(weight),
            num_tokens=int(sums.num_tokens),
            num_loss_tokens=int(sums.num_loss_tokens),
            step_s=step_s,
            cpu_s=sums.cpu_s,
            tokens_per_s=sums.num_tokens / step_s,
            mfu=self._mfu(taken, data.lengths[batch]),
            peak_memory_gib=peak_memory_gib(self.model.device),
            held_out_loss=held_out_loss,
        )

    def _mfu(self, taken: Taken, lengths: npt.NDArray[np.int64]) -> float | None:
        peak = peak_flops(self.model.device)
        if not (self._flops and peak):
            return None
        done = self._flops.total(
            num_tokens=taken.sums.num_tokens,
            num_loss_tokens=taken.sums.num_loss_tokens,
            num_positions=float((lengths**2).sum()),
        )
        num_ranks = dist.get_world_size() if dist.is_initialized() else 1
        return done / (taken.step_s * peak * num_ranks)
