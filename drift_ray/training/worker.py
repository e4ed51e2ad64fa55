"""What one process of a training does, whoever started it: Ray Train, ``torchrun`` or a shell."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from drift_ray import __version__
from drift_ray.config import RunConfig
from drift_ray.errors import DriftRayError
from drift_ray.models import resolve_model
from drift_ray.store import MODEL, RunStore
from drift_ray.training import SUMMARY_FILE
from drift_ray.training.checkpoint import CheckpointState
from drift_ray.training.data import TrainingData, load_training_data
from drift_ray.training.loop import OnCheckpoint, StepMetrics, train
from drift_ray.training.metric_log import MetricLog, latest_metrics
from drift_ray.training.policy import export_policy, load_policy


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """This process among those that train together."""

    rank: int
    world_size: int
    device: torch.device


def train_policy(
    config: RunConfig,
    store: RunStore,
    *,
    digest: str,
    process: Process,
    resume_from: Path | None,
    on_checkpoint: OnCheckpoint,
) -> None:
    """Load, train and, on rank 0, log and export; needs a process group if ``world_size > 1``.

    Raises:
        StorageError: The run directory cannot be read or written.
        DriftRayError: Model, data, settings or gradient are wrong; all ranks raise the same.
    """
    if process.device.type == "cpu":
        torch.set_num_threads(max(1, int(config.training.num_cpus)))
    data, model, reference = _load_together(config, store, process)
    log = MetricLog(store, digest) if process.rank == 0 else None

    def on_step(metrics: StepMetrics) -> None:
        if log:
            log.add(asdict(metrics))

    def save(state: CheckpointState, *trained: Any) -> None:
        if log:
            log.flush()  # a resumed training does not write the steps before its checkpoint again
        on_checkpoint(state, *trained)

    train(
        model,
        data,
        config.training,
        seed=config.seed,
        rank=process.rank,
        world_size=process.world_size,
        resume_from=resume_from,
        on_step=on_step,
        on_checkpoint=save,
    )
    if log:
        with tempfile.TemporaryDirectory(prefix="drift_ray-") as folder:
            export_policy(model, reference, Path(folder))
            store.upload_dir(Path(folder), MODEL)
        store.write_json(SUMMARY_FILE, _summary(config, store, digest, data))


def _load_together(
    config: RunConfig, store: RunStore, process: Process
) -> tuple[TrainingData, PreTrainedModel, Path]:
    """Load data and model; what fails on one rank is raised on all, so that none waits forever."""
    error: DriftRayError | None = None
    try:
        reference = resolve_model(config.model.path)
        data = load_training_data(
            store, weighting=config.weighting.name, loss_turns=config.training.loss_turns
        )
        model = load_policy(
            reference,
            data,
            trust_remote_code=config.model.trust_remote_code,
            device=process.device,
        )
    except DriftRayError as caught:
        error = caught
    errors: list[DriftRayError | None] = [error]
    if dist.is_initialized():
        errors = [None] * process.world_size
        dist.all_gather_object(errors, error)
    for error in errors:
        if error:
            raise error
    return data, model, reference


def _summary(config: RunConfig, store: RunStore, digest: str, data: TrainingData) -> dict[str, Any]:
    last_step = latest_metrics(store, digest) or {}
    return {
        "digest": digest,
        "drift_ray": __version__,
        "reference": config.model.path,
        "weighting": config.weighting.name,
        "num_samples": len(data),
        "num_zero_weight": data.num_zero_weight,
        "num_without_loss": data.num_without_loss,
        "left_out_weight_frac": data.left_out_weight_frac,
        "num_steps": last_step.get("num_steps"),
        "loss": last_step.get("loss"),
        "nll": last_step.get("nll"),
        "kl_ref": last_step.get("kl_ref"),
    }
