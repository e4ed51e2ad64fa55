"""The training loop: plain PyTorch, on one process or any ``torch.distributed`` group."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from drift_ray.config import TrainingConfig
from drift_ray.training.checkpoint import CheckpointState
from drift_ray.training.data import TrainingData
from drift_ray.training.early_stop import HeldOutRecord, keep_best, restore_best
from drift_ray.training.learner import Learner, StepMetrics
from drift_ray.training.optimizer import learning_rate
from drift_ray.training.order import MoreWaves, SampleOrder


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
    learner = Learner(model, config, device)
    state = CheckpointState(step=0, data=fingerprint, digest=digest)
    if resume_from:
        state = learner.resume(resume_from, data=fingerprint, digest=digest)
    metrics = None
    saved_at = time.monotonic()
    order.settle(state.step)

    while state.step < order.plan.num_steps and not _is_over(state, config):
        step, data, plan = state.step, order.data, order.plan
        batch = plan.batch(step)
        num_scheduled = plan.num_schedule_steps
        rate = learning_rate(min(step, num_scheduled - 1), num_scheduled, config)
        due = time.monotonic() - saved_at >= config.checkpoint_every_minutes * 60
        taken = learner.step(data, batch, step=step, rate=rate, due=due)
        state = replace(state, step=step + 1)
        order.settle(state.step)  # it has to be known whether this step was the last one
        num_steps, held_out_loss = order.plan.num_steps, None
        ends = state.step == num_steps
        if order.held_out and (ends or state.step % config.eval_every_steps == 0):
            held_out_loss = learner.evaluate(order.held_out)
            state = _judge(state, held_out_loss, learner.optimizer, config)
            ends = ends or _is_over(state, config)
        metrics = learner.metrics(
            taken, data, batch, step=step, num_steps=num_steps, held_out_loss=held_out_loss
        )
        on_step(metrics)
        if ends or taken.sums.due or state.step % config.checkpoint_every_steps == 0:
            on_checkpoint(state, model, learner.optimizer)
            saved_at = time.monotonic()
    if state.held_out.best_step:
        restore_best(learner.optimizer)
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
