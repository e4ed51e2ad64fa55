"""The training loop: plain PyTorch, on one process or any ``torch.distributed`` group."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from drift_ray.training.checkpoint import CheckpointState, load_checkpoint
from drift_ray.training.data import TrainingData
from drift_ray.training.early_stop import HeldOutRecord, keep_best, restore_best
from drift_ray.training.loss import WeightedNLL
from drift_ray.training.monitors import (
    StepFlops,
    count_flops,
    effective_samples,
    peak_flops,
    peak_memory_gib,
)
from drift_ray.training.optimizer import build_optimizer, learning_rate
from drift_ray.training.order import MoreWaves, SampleOrder
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
    tokens_per_s: float
    mfu: float | None
    """Share of the GPUs' dense bfloat16 peak that went into the model's own FLOPs; None where one
    of the two is not known."""
    peak_memory_gib: float
    """Of this rank: tensors on its GPU, else its whole process."""
    held_out_loss: float | None
    """As ``loss``, over the held-out samples and after the step; None where it is not measured."""


class TrainingResult(NamedTuple):
    """What came of a training."""

    num_steps: int
    """Steps made, those before a checkpoint included."""
    last: StepMetrics | None
    """Of the last step; None if the checkpoint left nothing to do."""
    held_out: HeldOutRecord
    """Of early stopping; nothing entered without it."""


OnStep = Callable[[StepMetrics], None]
OnCheckpoint = Callable[[CheckpointState, nn.Module, torch.optim.Optimizer], None]


def train(
    model: PreTrainedModel,
    data: TrainingData,
    config: TrainingConfig,
    *,
    held_out: TrainingData | None = None,
    device: torch.device | None = None,
    seed: int,
    digest: str,
    more: MoreWaves | None = None,
    resume_from: Path | None = None,
    on_step: OnStep = lambda metrics: None,
    on_checkpoint: OnCheckpoint = lambda state, model, optimizer: None,
) -> TrainingResult:
    """Train a model in place, from the start or from a checkpoint.

    Every rank of the default ``torch.distributed`` group, if there is one, calls this alike. The
    trajectory of the parameters depends on model, data, config and seed, and, but for the order of
    float32 sums, on neither micro-batches nor ranks.

    Args:
        model: float32 parameters.
        data: All samples, or those of the first wave; the same on every rank.
        config: Hyperparameters.
        held_out: Samples that are only measured, the same on every rank; early stopping needs them.
        device: Where to train, if not where the model is.
        seed: Orders the data.
        digest: Names this training; a checkpoint of another one is refused.
        more: Where further waves come from, always the same ones in the same order.
        resume_from: A folder that :func:`save_checkpoint` wrote, on any number of ranks.
        on_step: Called after every step on every rank with the same metrics but for the times.
        on_checkpoint: Called on every rank at the same steps: every ``checkpoint_every_steps``
            or ``checkpoint_every_minutes``, and at the end. The optimizer's state holds the best
            parameters so far, if there is early stopping.

    Returns:
        What came of it. With early stopping the model has the parameters of the lowest held-out
        loss, else those of the last step.

    Raises:
        StageError: The checkpoint belongs to another training, a sample exceeds the token budget,
            or the gradient is not finite; all ranks raise alike.
    """
    order = SampleOrder(data, held_out, config, seed=seed, more=more)
    fingerprint = order.fingerprint()
    flops = count_flops(model)
    module = parallelize(WeightedNLL(model), config, device)
    optimizer = build_optimizer(model, config)
    state = CheckpointState(step=0, data=fingerprint, digest=digest)
    if resume_from:
        state = load_checkpoint(resume_from, model, optimizer, data=fingerprint, digest=digest)
    metrics = None
    saved_at = time.monotonic()
    order.settle(state.step)

    while state.step < order.plan.num_steps and not _is_over(state, config):
        started = time.perf_counter()
        step, data, plan = state.step, order.data, order.plan
        batch = plan.batch(step)
        num_scheduled = plan.num_schedule_steps
        rate = learning_rate(min(step, num_scheduled - 1), num_scheduled, config)
        due = time.monotonic() - saved_at >= config.checkpoint_every_minutes * 60
        sums, grad_norm = _take_step(module, optimizer, data, batch, config, step, rate, due)
        step_s = time.perf_counter() - started
        state = replace(state, step=step + 1)
        order.settle(state.step)  # it has to be known whether this step was the last one
        num_steps, held_out_loss = order.plan.num_steps, None
        ends = state.step == num_steps
        if order.held_out and (ends or state.step % config.eval_every_steps == 0):
            held_out_loss = evaluate(module, order.held_out, config)
            state = _judge(state, held_out_loss, optimizer, config)
            ends = ends or _is_over(state, config)
        metrics = _metrics(
            sums,
            flops,
            model.device,
            step=step,
            num_steps=num_steps,
            grad_norm=grad_norm,
            learning_rate=rate,
            weight=data.importance_weight[batch],
            lengths=data.lengths[batch],
            step_s=step_s,
            held_out_loss=held_out_loss,
        )
        on_step(metrics)
        if ends or sums.due or state.step % config.checkpoint_every_steps == 0:
            on_checkpoint(state, model, optimizer)
            saved_at = time.monotonic()
    if state.held_out.best_step:
        restore_best(optimizer)
    return TrainingResult(state.step, metrics, state.held_out)


def _is_over(state: CheckpointState, config: TrainingConfig) -> bool:
    return config.early_stopping is not None and state.held_out.is_over(config.early_stopping)


def _judge(
    state: CheckpointState,
    held_out_loss: float,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
) -> CheckpointState:
    """Enter a held-out loss in the record; keep the parameters if there was none so low."""
    if config.early_stopping is None:
        return state
    record = state.held_out.add(held_out_loss, state.step, config.early_stopping)
    if record.best_step == state.step:
        keep_best(optimizer)
    return replace(state, held_out=record)


def _take_step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: TrainingData,
    batch: npt.NDArray[np.int64],
    config: TrainingConfig,
    step: int,
    rate: float,
    due: bool,
) -> tuple[BatchSums, float]:
    """One step of the optimizer; returns the sums and the norm of the gradient."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    sums = batch_gradient(module, data, batch, config, due=due)
    grad_norm = clip_grad_norm(module, config.max_grad_norm)
    if not math.isfinite(grad_norm):
        raise StageError(
            f"The gradient of training step {step} is not finite ({grad_norm}).",
            "Lower training.learning_rate, or train with training.dtype=float32.",
        )
    optimizer.step()
    return sums, grad_norm


def _metrics(
    sums: BatchSums,
    flops: StepFlops | None,
    device: torch.device,
    *,
    weight: npt.NDArray[np.float64],
    lengths: npt.NDArray[np.int64],
    step_s: float,
    **others: Any,
) -> StepMetrics:
    peak = peak_flops(device)
    mfu = None
    if flops and peak:
        done = flops.total(
            num_tokens=sums.num_tokens,
            num_loss_tokens=sums.num_loss_tokens,
            num_positions=float((lengths**2).sum()),
        )
        mfu = done / (step_s * peak * (dist.get_world_size() if dist.is_initialized() else 1))
    return StepMetrics(
        loss=sums.loss / len(weight),
        nll=sums.nll / sums.num_loss_tokens,
        kl_ref=None if math.isnan(sums.kl_ref) else sums.kl_ref / sums.num_loss_tokens,
        num_samples=len(weight),
        ess=effective_samples(weight),
        num_tokens=int(sums.num_tokens),
        num_loss_tokens=int(sums.num_loss_tokens),
        step_s=step_s,
        tokens_per_s=sums.num_tokens / step_s,
        mfu=mfu,
        peak_memory_gib=peak_memory_gib(device),
        **others,
    )
