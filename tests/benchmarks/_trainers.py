"""Two sides that train on the same samples: our loop, and Hugging Face's Trainer.

The latter in the shape of the DRIFT reference's script: two trajectories at a time, padded on the
right to the longer one, as many accumulated as make a batch; logits of every token, in full; the
mean NLL of a trajectory's loss tokens times its importance weight, averaged over the two.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import SequentialSampler
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from drift_ray.config import TrainingConfig
from drift_ray.training.attention import NAME
from drift_ray.training.batches import BatchPlan
from drift_ray.training.data import TrainingData
from drift_ray.training.learner import StepMetrics
from drift_ray.training.loop import train

SEED = 0
PER_DEVICE_BATCH_SIZE = 2
IGNORED = -100


@dataclass(kw_only=True)
class Run:
    """What the steps did, in their order."""

    losses: list[float] = field(default_factory=list)
    """Weighted, before each step."""
    grad_norms: list[float] = field(default_factory=list)
    """Before clipping."""
    ended_at_s: list[float] = field(default_factory=list)
    cpu_at_s: list[float] = field(default_factory=list)
    """Time that the process had used by then, over all threads."""

    def end_step(self, loss: float) -> None:
        self.losses.append(loss)
        self.ended_at_s.append(time.perf_counter())
        self.cpu_at_s.append(time.process_time())


def train_ours(model: PreTrainedModel, data: TrainingData, config: TrainingConfig) -> Run:
    """Train a model in place as a training worker does."""
    run = Run()

    def note(metrics: StepMetrics) -> None:
        run.grad_norms.append(metrics.grad_norm)
        run.end_step(metrics.loss)

    model.set_attn_implementation(NAME)
    if model.device.type == "cuda" and not dist.is_initialized():
        # As a worker alone on its GPU: a group of one, whose shards bring mixed precision.
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    train(model, data, config, seed=SEED, digest="benchmark", on_step=note)
    return run


def data_order(data: TrainingData, config: TrainingConfig) -> np.ndarray:
    """The samples in the order in which :func:`train_ours` takes them."""
    plan = BatchPlan(
        num_samples=len(data),
        batch_size=config.batch_size,
        num_epochs=config.num_epochs,
        seed=SEED,
    )
    return np.concatenate([plan.batch(step) for step in range(plan.num_steps)])


def in_fresh_process(script: str, arguments: list[Any], **environment: str) -> dict[str, Any]:
    """What ``script --contend ARGUMENTS`` prints last, as JSON."""
    command = [sys.executable, script, "--contend", json.dumps(arguments)]
    process = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | environment
    )
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


def samples_of(data: TrainingData, order: np.ndarray) -> list[dict[str, Any]]:
    """Samples as the Trainer takes them, in the order of the steps."""
    samples = []
    for index in order:
        span = slice(*data.offsets[index : index + 2])
        token_ids = data.token_ids[span].astype(np.int64)
        labels = np.where(data.loss_mask[span], token_ids, IGNORED)
        samples.append(
            {
                "input_ids": torch.from_numpy(token_ids),
                "labels": torch.from_numpy(labels),
                "weight": float(data.importance_weight[index]),
            }
        )
    return samples


def pad(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A micro-batch as wide as its longest sample."""
    token_ids = [sample["input_ids"] for sample in samples]
    return {
        "input_ids": pad_sequence(token_ids, batch_first=True),
        "attention_mask": pad_sequence(list(map(torch.ones_like, token_ids)), batch_first=True),
        "labels": pad_sequence(
            [sample["labels"] for sample in samples], batch_first=True, padding_value=IGNORED
        ),
        "weights": torch.tensor([sample["weight"] for sample in samples]),
    }


def weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Mean over samples of w_i · mean_t NLL_it."""
    targets = labels[:, 1:]
    nll = cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        targets.flatten(),
        ignore_index=IGNORED,
        reduction="none",
    ).view(targets.shape)
    return (weights * nll.sum(1) / (targets != IGNORED).sum(1)).mean()


class WeightedTrainer(Trainer):
    """Weighs the loss of each sample and takes samples in the order given."""

    frugal = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.micro_losses: list[Tensor] = []

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        weights, labels = inputs.pop("weights"), inputs["labels"]
        if self.frugal:
            del inputs["labels"]
        loss = weighted_loss(model(**inputs).logits, labels, weights)
        self.micro_losses.append(loss.detach())
        return loss


class Recorder(TrainerCallback):
    """Notes each step's end, loss and gradient norm."""

    def __init__(self, trainer: WeightedTrainer, run: Run) -> None:
        self._trainer, self._run = trainer, run

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._run.end_step(torch.stack(self._trainer.micro_losses).mean().item())
        self._trainer.micro_losses.clear()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "grad_norm" in logs:
            self._run.grad_norms.append(float(logs["grad_norm"]))


def train_reference(
    model: PreTrainedModel,
    data: TrainingData,
    config: TrainingConfig,
    *,
    frugal: bool = False,
    with_accumulation_bug: bool = False,
) -> Run:
    """Train a model in place as the reference does, on the samples of :func:`train_ours`.

    Args:
        model: On the device to train on.
        data: The samples.
        config: Batch size, which must divide the samples, and hyperparameters, without warm-up: the
            Trainer's begins with a step of length zero, ours does not.
        frugal: Leave out two habits of the script that cost time and change no gradient: layers
            computed again in the backward pass, and the model's own loss beside the weighted one.
        with_accumulation_bug: Do not divide by the accumulation steps, as the script does not.
    """
    run = Run()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=PER_DEVICE_BATCH_SIZE,
            gradient_accumulation_steps=config.batch_size // PER_DEVICE_BATCH_SIZE,
            learning_rate=config.learning_rate,
            num_train_epochs=config.num_epochs,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=0,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            gradient_checkpointing=not frugal,
            bf16=config.dtype == "bfloat16",
            use_cpu=model.device.type == "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            disable_tqdm=True,
        )
        trainer = WeightedTrainer(
            model=model,
            args=arguments,
            train_dataset=samples_of(data, data_order(data, config)),
            data_collator=pad,
        )
        trainer.frugal = frugal
        trainer.loss_is_scaled_for_ga = with_accumulation_bug
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Recorder(trainer, run))
        trainer.train()
    return run
