"""The training loop: plain PyTorch, on one process or any ``torch.distributed`` group."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from drift_ray.config import TrainingConfig
from drift_ray.errors import StageError
from drift_ray.training.batches import BatchPlan, MoreWaves, collate, deal
from drift_ray.training.checkpoint import CheckpointState, load_checkpoint
from drift_ray.training.data import TrainingData, check_token_budget
from drift_ray.training.loss import WeightedNLL
from drift_ray.training.parallel import backward_context, clip_grad_norm, parallelize


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
    """Effective samples of the batch, (Σ|w|)²/Σw²."""
    num_tokens: int
    """Tokens that went through the model, padding not counted."""
    num_loss_tokens: int
    step_s: float
    tokens_per_s: float


OnStep = Callable[[StepMetrics], None]
OnCheckpoint = Callable[[CheckpointState, nn.Module, torch.optim.Optimizer], None]


def train(
    model: PreTrainedModel,
    data: TrainingData,
    config: TrainingConfig,
    *,
    seed: int,
    digest: str,
    more: MoreWaves | None = None,
    resume_from: Path | None = None,
    on_step: OnStep = lambda metrics: None,
    on_checkpoint: OnCheckpoint = lambda state, model, optimizer: None,
) -> tuple[int, StepMetrics | None]:
    """Train a model in place, from the start or from a checkpoint.

    Every rank of the default ``torch.distributed`` group, if there is one, calls this alike. The
    trajectory of the parameters depends on model, data, config and seed, and, but for the order of
    float32 sums, on neither micro-batches nor ranks.

    Args:
        model: float32 parameters, on the device to train on.
        data: All samples, or those of the first wave; the same on every rank.
        config: Hyperparameters.
        seed: Orders the data.
        digest: Names this training; a checkpoint of another one is refused.
        more: Where further waves come from, always the same ones in the same order.
        resume_from: A folder that :func:`save_checkpoint` wrote, on any number of ranks.
        on_step: Called after every step on every rank with the same metrics but for the times.
        on_checkpoint: Called on every rank at the same steps: every ``checkpoint_every_steps``
            or ``checkpoint_every_minutes``, and at the end.

    Returns:
        The steps of the whole training, and the last one's metrics: None if the checkpoint left
        nothing to do.

    Raises:
        StageError: The checkpoint belongs to another training, a sample exceeds the token budget,
            or the gradient is not finite; all ranks raise alike.
    """
    check_token_budget(data, config.micro_batch_tokens)
    plan = BatchPlan(
        num_samples=len(data),
        batch_size=config.batch_size,
        num_epochs=config.num_epochs,
        seed=seed,
        is_complete=more is None,
        num_planned=more.num_planned if more else None,
    )
    module = parallelize(WeightedNLL(model), config)
    optimizer = build_optimizer(model, config)
    identity = {"data": data.fingerprint(), "digest": digest}
    first = load_checkpoint(resume_from, model, optimizer, **identity) if resume_from else 0
    metrics = None
    saved, saved_at = first, time.monotonic()

    for step in count(first):
        while more is not None and not plan.has_batch(step):
            data, is_last = more.next_wave()
            check_token_budget(data, config.micro_batch_tokens)
            plan = plan.with_wave(len(data), is_last=is_last)
        if step >= plan.num_steps:
            break
        started = time.perf_counter()
        batch = plan.batch(step)
        learning_rate = config.learning_rate * warmup(
            step, plan.num_schedule_steps, config.warmup_frac
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.zero_grad()
        due = time.monotonic() - saved_at >= config.checkpoint_every_minutes * 60
        sums = batch_gradient(module, data, batch, config, due=due)
        grad_norm = clip_grad_norm(module, config.max_grad_norm)
        if not math.isfinite(grad_norm):
            raise StageError(
                f"The gradient of training step {step} is not finite ({grad_norm}).",
                "Lower training.learning_rate, or train with training.dtype=float32.",
            )
        optimizer.step()
        metrics = _metrics(
            sums,
            step=step,
            num_steps=plan.num_steps,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            weight=data.importance_weight[batch],
            step_s=time.perf_counter() - started,
        )
        on_step(metrics)
        done = step + 1
        if sums.due or done % config.checkpoint_every_steps == 0:
            on_checkpoint(CheckpointState(step=done, **identity), model, optimizer)
            saved, saved_at = done, time.monotonic()
    if metrics is not None and saved < plan.num_steps:
        on_checkpoint(CheckpointState(step=plan.num_steps, **identity), model, optimizer)
    return plan.num_steps, metrics


class BatchSums(NamedTuple):
    """Sums over a batch and all ranks."""

    loss: float
    nll: float
    kl_ref: float
    num_loss_tokens: float
    num_tokens: float
    due: float
    """Ranks that want a checkpoint now. Their clocks differ, and all have to write it."""


def batch_gradient(
    module: nn.Module,
    data: TrainingData,
    batch: npt.NDArray[np.int64],
    config: TrainingConfig,
    *,
    due: bool = False,
) -> BatchSums:
    """Add the gradient of the batch's mean loss to that of every parameter, on every rank.

    Args:
        module: What :func:`parallelize` returned.
        data: All samples.
        batch: Samples of the step over all ranks.
        config: Hyperparameters.
        due: Whether this rank wants a checkpoint.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    shares = deal(batch, data.lengths, world_size=world_size, max_tokens=config.micro_batch_tokens)
    own = shares[rank]
    num_rounds = max(map(len, shares))
    device = next(module.parameters()).device
    sums = torch.zeros(len(BatchSums._fields), dtype=torch.float64, device=device)
    sums[-1] = due
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16")
    for index in range(num_rounds):
        idle = index >= len(own)
        # Shards meet in every round: a rank that has nothing left repeats a sample for nothing.
        samples = shares[0][-1][-1:] if idle else own[index]
        micro = collate(data, samples, config.token_reduction)
        with backward_context(module, last=index == num_rounds - 1):
            with autocast:
                found = module(micro)
            # Ranks are averaged over, but a batch's loss is a sum over them.
            (found.loss * (0.0 if idle else world_size / len(batch))).backward()
        if not idle:
            counts = found.loss.new_tensor([len(micro.loss_positions), len(micro.token_ids)])
            sums[:-1] += torch.cat([torch.stack([s.detach() for s in found]), counts])
    if dist.is_initialized():
        dist.all_reduce(sums)
    return BatchSums(*sums.tolist())


def _metrics(
    sums: BatchSums, *, weight: npt.NDArray[np.float64], step_s: float, **others: Any
) -> StepMetrics:
    return StepMetrics(
        loss=sums.loss / len(weight),
        nll=sums.nll / sums.num_loss_tokens,
        kl_ref=None if math.isnan(sums.kl_ref) else sums.kl_ref / sums.num_loss_tokens,
        num_samples=len(weight),
        ess=float(np.abs(weight).sum() ** 2 / (weight**2).sum()),
        num_tokens=int(sums.num_tokens),
        num_loss_tokens=int(sums.num_loss_tokens),
        step_s=step_s,
        tokens_per_s=sums.num_tokens / step_s,
        **others,
    )


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
