"""The training loop: plain PyTorch, on one process or any ``torch.distributed`` group."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedModel

from drift_ray.config import TrainingConfig
from drift_ray.errors import StageError
from drift_ray.training.batches import BatchPlan, collate, rank_share, split_by_tokens
from drift_ray.training.checkpoint import CheckpointState, load_checkpoint
from drift_ray.training.data import TrainingData
from drift_ray.training.gradients import GradientBuffer
from drift_ray.training.loss import weighted_nll


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMetrics:
    """What one step did, over all ranks."""

    step: int
    """0-based."""
    num_steps: int
    """Steps of the whole training."""
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
    """Effective samples of the batch, (Σw)²/Σw²."""
    num_tokens: int
    """Tokens that went through the model, padding not counted."""
    num_loss_tokens: int
    step_s: float
    tokens_per_s: float


NUM_SUMS = 5
"""What :func:`batch_gradient` adds up beside the gradient."""

OnStep = Callable[[StepMetrics], None]
OnCheckpoint = Callable[[CheckpointState, nn.Module, torch.optim.Optimizer], None]


def train(
    model: PreTrainedModel,
    data: TrainingData,
    config: TrainingConfig,
    *,
    seed: int,
    digest: str,
    rank: int = 0,
    world_size: int = 1,
    resume_from: Path | None = None,
    on_step: OnStep = lambda metrics: None,
    on_checkpoint: OnCheckpoint = lambda state, model, optimizer: None,
) -> tuple[int, StepMetrics | None]:
    """Train a model in place, from the start or from a checkpoint.

    The trajectory of the parameters depends on model, data, config and seed, and, but for the
    order of float32 sums, on neither micro-batches nor ranks.

    Args:
        model: float32 parameters, on the device to train on. Dropout is switched off: the policy
            that is trained is the policy that acts.
        data: All samples, the same on every rank.
        config: Hyperparameters.
        seed: Orders the data.
        digest: Names this training; a checkpoint of another one is refused.
        rank: This process within the default ``torch.distributed`` group, if there is one.
        world_size: Its size.
        resume_from: A folder that :func:`save_checkpoint` wrote.
        on_step: Called after every step on every rank with the same metrics but for the times.
        on_checkpoint: Called on every rank every ``config.checkpoint_every_steps`` and at the end.

    Returns:
        The steps of the whole training, and the last one's metrics: None if the checkpoint left
        nothing to do.

    Raises:
        StageError: The checkpoint belongs to another training, or the gradient is not finite; all
            ranks raise alike.
    """
    plan = BatchPlan(
        num_samples=len(data),
        batch_size=config.batch_size,
        num_epochs=config.num_epochs,
        seed=seed,
    )
    model.eval()
    gradients = GradientBuffer([p for p in model.parameters() if p.requires_grad], NUM_SUMS)
    optimizer = build_optimizer(model, config)
    identity = {"data": data.fingerprint(), "digest": digest}
    first = load_checkpoint(resume_from, model, optimizer, **identity) if resume_from else 0
    metrics = None

    for step in range(first, plan.num_steps):
        started = time.perf_counter()
        batch = plan.batch(step)
        weight = data.importance_weight[batch]
        learning_rate = config.learning_rate * warmup(step, plan.num_steps, config.warmup_frac)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        batch_gradient(model, data, batch, config, gradients, rank=rank, world_size=world_size)
        grad_norm = gradients.clip(config.max_grad_norm)
        if not math.isfinite(grad_norm):
            raise StageError(
                f"The gradient of training step {step} is not finite ({grad_norm}).",
                "Lower training.learning_rate, or train with training.dtype=float32.",
            )
        optimizer.step()
        loss, nll, kl_ref, num_loss_tokens, num_tokens = gradients.sums.tolist()
        step_s = time.perf_counter() - started
        metrics = StepMetrics(
            step=step,
            num_steps=plan.num_steps,
            loss=loss / len(batch),
            nll=nll / num_loss_tokens,
            kl_ref=None if math.isnan(kl_ref) else kl_ref / num_loss_tokens,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            num_samples=len(batch),
            ess=float(weight.sum() ** 2 / (weight**2).sum()),
            num_tokens=int(num_tokens),
            num_loss_tokens=int(num_loss_tokens),
            step_s=step_s,
            tokens_per_s=num_tokens / step_s,
        )
        on_step(metrics)
        done = step + 1
        if done % config.checkpoint_every_steps == 0 or done == plan.num_steps:
            on_checkpoint(CheckpointState(step=done, **identity), model, optimizer)
    return plan.num_steps, metrics


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices, and neither biases nor norms (as Hugging Face's trainer)."""
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


def warmup(step: int, num_steps: int, warmup_frac: float) -> float:
    """Factor of the learning rate at a 0-based step: linear up to 1, then constant."""
    return min(1.0, (step + 1) / max(1, math.ceil(warmup_frac * num_steps)))


def batch_gradient(
    model: PreTrainedModel,
    data: TrainingData,
    batch: npt.NDArray[np.int64],
    config: TrainingConfig,
    gradients: GradientBuffer,
    *,
    rank: int,
    world_size: int,
) -> None:
    """Fill ``gradients`` with those of the batch's mean loss, on every rank.

    Its sums become: loss, nll and kl_ref of :class:`LossSums`, loss tokens, tokens.
    """
    gradients.zero()
    lengths = data.lengths
    share = rank_share(batch, lengths, rank=rank, world_size=world_size)
    autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=config.dtype == "bfloat16")
    for samples in split_by_tokens(share, lengths, max_tokens=config.micro_batch_tokens):
        micro = collate(data, samples)
        with autocast:
            sums = weighted_nll(model, micro, config.token_reduction)
        (sums.loss / len(batch)).backward()
        counts = sums.loss.new_tensor([len(micro.loss_rows), micro.num_tokens])
        gradients.sums += torch.cat([torch.stack([s.detach() for s in sums]), counts])
    gradients.all_reduce()
