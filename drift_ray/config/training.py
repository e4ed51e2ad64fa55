"""Importance-weighted fine-tuning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from drift_ray.config.section import (
    Fraction,
    LabelSelector,
    NonNegativeAmount,
    NonNegativeFloat,
    PositiveAmount,
    PositiveFloat,
    PositiveInt,
    Section,
)


class WorkerRange(Section):
    """A number of workers that follows the resources of the cluster."""

    min: PositiveInt
    """Training starts, and goes on after a loss, when so many find room."""
    max: PositiveInt
    """As many are taken when they find room."""

    @model_validator(mode="before")
    @classmethod
    def _number_is_exact(cls, raw: object) -> object:
        return {"min": raw, "max": raw} if isinstance(raw, int) else raw

    @model_validator(mode="after")
    def _is_a_range(self) -> WorkerRange:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is greater than max {self.max}")
        return self


class LoraConfig(Section):
    """Low-rank adapters: W x + alpha/rank · B (A x), of which A and B are trained.

    Without dropout: the policy that is trained is the policy that acts.
    """

    rank: PositiveInt = 16
    """Columns of B and rows of A."""
    alpha: PositiveFloat = 32.0
    """Scale of what they add, times the rank."""
    target_modules: Literal["all-linear"] | list[Annotated[str, Field(min_length=1)]] = "all-linear"
    """Which linear layers get adapters: all but the output matrix, or those whose names end in one
    of these."""

    @model_validator(mode="after")
    def _some_layers(self) -> LoraConfig:
        if not self.target_modules:
            raise ValueError("target_modules is empty: name layers, or 'all-linear'")
        return self


class EarlyStoppingConfig(Section):
    """Ends a training that no longer gets better on held-out data."""

    patience: PositiveInt = 3
    """Evaluations in a row that may be no better than the best one."""
    min_delta: NonNegativeFloat = 0.0
    """A held-out loss is better if it is lower by more than this."""


class TrainingConfig(Section):
    """Importance-weighted supervised fine-tuning."""

    num_workers: WorkerRange = WorkerRange(min=2, max=2)
    """Processes that share every step; a number N means exactly N. Steps do not depend on it."""
    num_cpus: PositiveAmount = 1.0
    """CPUs a worker; also its threads when it has no GPU."""
    num_gpus: NonNegativeAmount = 0.0
    """GPUs a worker; workers cannot share one."""
    resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Custom resources a worker, for example ``{trainer: 1}``, which only some nodes have."""
    label_selector: LabelSelector = Field(default_factory=dict)
    """Labels of the nodes that workers may run on: ``{drift-ray/training: enabled}``, for one."""
    num_epochs: PositiveInt = 1
    """Passes over the trajectories."""
    batch_size: PositiveInt = 64
    """Trajectories a step over all workers."""
    micro_batch_tokens: PositiveInt = 8192
    """Tokens a worker puts through the model at once; at least as many as the longest sample."""
    learning_rate: PositiveFloat = 5e-6
    """Of AdamW, after warm-up."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Of the learning rate after warm-up."""
    warmup_frac: Fraction = 0.1
    """Share of the steps with linear warm-up."""
    min_learning_rate_frac: Fraction = 0.0
    """What ``cosine`` and ``linear`` go down to, as a share of ``learning_rate``."""
    weight_decay: NonNegativeFloat = 0.1
    """Of matrices; biases and norms do not decay."""
    max_grad_norm: PositiveFloat = 1.0
    """The gradient of a step is scaled down to this L2 norm."""
    loss_turns: Literal["last", "all"] = "last"
    """Assistant turns that carry loss; ``all`` is the closed form, ``last`` the reference's."""
    token_reduction: Literal["mean", "sum"] = "mean"
    """NLL of a trajectory: mean or sum over its loss tokens."""
    max_context_tokens: PositiveInt | None = None
    """Tokens kept before a trajectory's first loss token; older ones are left out, answers never.
    All are kept when omitted."""
    held_out_frac: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the prompts that are not trained on; a prompt's id and the run's seed decide."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters and optimizer state stay float32."""
    lora: LoraConfig | None = None
    """Train low-rank adapters (extra ``lora``) in place of all parameters; merged at export."""
    eval_every_steps: PositiveInt = 50
    """How often the held-out loss is measured (``held_out_frac``), besides the end."""
    early_stopping: EarlyStoppingConfig | None = None
    """Stop when the held-out loss no longer falls; the model of the lowest one is exported."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Where metrics go besides ``metrics.jsonl``: TensorBoard files in the run directory (extra
    ``tensorboard``), Weights & Biases, MLflow (when installed; they log in by their own means)."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How workers share the model: ``ddp`` gives each a copy, ``fsdp`` (FSDP2) a shard; ``auto``
    shards on GPUs."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass: a third more work, far less memory."""
    compile: bool = False
    """Compile every decoder layer with ``torch.compile``; pays on GPUs after the first minutes."""
    attention: Literal[
        "packed", "flash_attention_2", "flash_attention_3", "flex_attention", "sdpa"
    ] = "packed"
    """``packed`` is PyTorch's variable-length kernel, which needs no further package; the others
    are transformers' own. ``sdpa`` builds a mask of micro_batch_tokens²."""
    checkpoint_every_steps: PositiveInt = 100
    """Besides the last step, which is always saved."""
    checkpoint_every_minutes: PositiveFloat = 30.0
    """A checkpoint at the latest after so many minutes."""
    keep_checkpoints: PositiveInt = 2
    """The newest ones; older ones are removed."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Worker failures survived by restarting from the last checkpoint; those while Ray Train sets
    its workers up count on their own."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> TrainingConfig:
        if self.schedule == "constant" and self.min_learning_rate_frac:
            raise ValueError("min_learning_rate_frac needs schedule 'cosine' or 'linear'")
        return self

    @model_validator(mode="after")
    def _something_is_held_out(self) -> TrainingConfig:
        if self.early_stopping is not None and self.held_out_frac == 0.0:
            raise ValueError("early_stopping needs held_out_frac above 0")
        return self

    @model_validator(mode="after")
    def _no_gpu_is_shared(self) -> TrainingConfig:
        if 0 < self.num_gpus < 1 < self.num_workers.max:
            raise ValueError(f"num_gpus {self.num_gpus:g}: several workers cannot share a GPU")
        return self

    @model_validator(mode="after")
    def _trackers_differ(self) -> TrainingConfig:
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"trackers names one twice: {', '.join(self.trackers)}")
        return self
