"""What one process of a training does, whoever started it: Ray Train, ``torchrun`` or a shell."""

from __future__ import annotations

import logging
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from drift_ray import __version__
from drift_ray.config import RunConfig
from drift_ray.errors import StageError
from drift_ray.models import model_fingerprint, resolve_model
from drift_ray.store import CHECKPOINTS, MODEL, RunStore
from drift_ray.training import SUMMARY_FILE
from drift_ray.training.card import model_card
from drift_ray.training.checkpoint import CheckpointState
from drift_ray.training.data import TrainingData
from drift_ray.training.extras import check_installed
from drift_ray.training.learner import StepMetrics
from drift_ray.training.loop import OnCheckpoint, TrainingResult, train
from drift_ray.training.lora import add_adapters, merge_adapters
from drift_ray.training.metric_log import MetricLog, log_name
from drift_ray.training.monitors import effective_samples
from drift_ray.training.parallel import full_state_dict
from drift_ray.training.policy import export_policy, load_policy
from drift_ray.training.shared_arrays import NodeGroup
from drift_ray.training.space import writing_to
from drift_ray.training.trackers import Trackers
from drift_ray.training.waves import Overlap, WaveFeed

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """This process among those that train together."""

    rank: int
    local_rank: int
    """On its node."""
    device: torch.device

    def group(self) -> NodeGroup:
        """This process and its peers in the default group; all of them call it alike."""
        if not dist.is_initialized():
            return NodeGroup()
        return NodeGroup(
            local_rank=self.local_rank,
            # Two nodes may see one folder; the ranks of a node follow each other.
            name=f"{self._share(uuid.uuid4().hex)}-{self.rank - self.local_rank}",
            barrier=dist.barrier,
            share=self._share,
            leads=self.rank == 0,
        )

    def _share(self, value: Any) -> Any:
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]


def train_policy(
    config: RunConfig,
    store: RunStore,
    *,
    digest: str,
    process: Process,
    resume_from: Path | None,
    on_checkpoint: OnCheckpoint,
    overlap: Overlap | None = None,
    on_step: Callable[[StepMetrics], None] | None = None,
) -> None:
    """Load, train, log and export; every process of the default group calls it alike.

    Args:
        config: The run.
        store: Its directory.
        digest: Names this training.
        process: Which one this is.
        resume_from: A checkpoint of this training.
        on_checkpoint: Called on every rank to save one.
        overlap: The sampling that goes on beside; None: all parts are there.
        on_step: Called after every step.

    Raises:
        StorageError: The run directory cannot be read or written, or a disk is full.
        DriftRayError: Model, data, settings or gradient are wrong. The other ranks may be waiting
            for this one then: whoever started them has to end them.
    """
    reference = prepare(config, process)
    training = config.training
    feed = WaveFeed(store, config, process.group(), digest=digest, overlap=overlap)
    data = feed.split
    model = initial_policy(config, reference, data.train)
    log_file = log_name(digest, beside_rollouts=overlap is not None)
    with open_logs(config, store, digest, process, log_file) as logs, out_of_memory_explained():

        def note(metrics: StepMetrics) -> None:
            for log in logs:
                log.add(asdict(metrics))
            if on_step is not None:
                on_step(metrics)

        def save(state: CheckpointState, *trained: Any) -> None:
            for log in logs:
                log.flush()  # a resumed training does not log the steps before its checkpoint again
            on_checkpoint(state, *trained)

        result = train(
            model,
            data.train,
            training,
            held_out=data.held_out,
            device=process.device,
            seed=config.seed,
            digest=digest,
            more=feed.more(),
            resume_from=resume_from,
            on_step=note,
            on_checkpoint=save,
        )
    feed.close()
    summary = _summary(config, digest, feed, result)
    commit_policy(model, process, config, store, reference=reference, summary=summary)
    if process.rank == 0:
        remove_other_checkpoints(store, digest)


def prepare(config: RunConfig, process: Process) -> Path:
    """Settle what a training needs of this process; returns the folder of the reference policy.

    Raises:
        ConfigError: A package is missing.
        ModelError: There is no such policy.
    """
    if process.device.type == "cpu":
        torch.set_num_threads(max(1, int(config.training.num_cpus)))
    check_installed(config.training)
    return resolve_model(config.model.path)


def initial_policy(config: RunConfig, reference: Path, data: TrainingData) -> PreTrainedModel:
    """The model that training begins with: the reference policy, with adapters where asked for.

    Raises:
        ModelError: As :func:`load_policy` and :func:`add_adapters`.
        DataError: As :func:`load_policy`.
    """
    model = load_policy(
        reference,
        data,
        trust_remote_code=config.model.trust_remote_code,
        attention=config.training.attention,
    )
    if config.training.lora:
        add_adapters(model, config.training.lora, seed=config.seed)
    return model


def commit_policy(
    model: PreTrainedModel,
    process: Process,
    config: RunConfig,
    store: RunStore,
    *,
    reference: Path,
    summary: dict[str, Any],
) -> None:
    """Commit a trained model as the ``model/`` folder of a run; all processes call it alike.

    Args:
        model: What was trained.
        process: Which one this is.
        config: The run.
        store: Where to.
        reference: Folder of the policy that training started from.
        summary: Written last: says that the folder is whole, and what it is.

    Raises:
        StorageError: No space left, or the run directory cannot be written.
    """
    parameters = full_state_dict(model)
    if process.rank != 0:
        return
    if config.training.lora:
        parameters = merge_adapters(parameters, config.training.lora)
    card = model_card(
        config, reference=reference, fingerprint=model_fingerprint(reference), summary=summary
    )
    with tempfile.TemporaryDirectory(prefix="drift_ray-") as folder:
        with writing_to(folder):
            export_policy(model, parameters, reference, Path(folder), card=card)
        store.upload_dir(Path(folder), MODEL)
    store.write_json(SUMMARY_FILE, summary)


@contextmanager
def open_logs(
    config: RunConfig, store: RunStore, digest: str, process: Process, file: str
) -> Iterator[list[MetricLog | Trackers]]:
    """Where the metrics go, on rank 0 only: ``file`` of the run directory, and trackers."""
    if process.rank != 0:
        yield []
        return
    with Trackers(config, store, digest) as trackers:
        yield [MetricLog(store, digest, file), trackers]


@contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Turn a lack of memory in this block into an error that says what to do."""
    try:
        yield
    except RuntimeError as error:
        # PyTorch has a type for GPUs alone.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate" not in str(error):
            raise
        raise StageError(
            f"Training ran out of memory: {str(error).strip().splitlines()[0]}",
            "Lower training.micro_batch_tokens, set training.activation_checkpointing=true, or "
            "share the model among more workers with training.strategy=fsdp. Then run the same "
            "command again: it goes on from the last checkpoint.",
        ) from error


def _summary(
    config: RunConfig, digest: str, feed: WaveFeed, result: TrainingResult
) -> dict[str, Any]:
    data, held_out = feed.split.train, feed.split.held_out
    last = result.last
    best = result.held_out if result.held_out.best_step else None
    return {
        "digest": digest,
        "drift_ray": __version__,
        "reference": config.model.path,
        "weighting": config.weighting.name,
        "num_samples": len(data),
        "num_waves": len(feed.waves),
        "num_held_out": len(held_out) if held_out else 0,
        "num_zero_weight": data.num_zero_weight,
        "num_without_loss": data.num_without_loss,
        "left_out_weight_frac": data.left_out_weight_frac,
        "ess": effective_samples(data.importance_weight),
        "num_steps": result.num_steps,
        "best_step": best and best.best_step,
        "held_out_loss": best.best_loss if best else last and last.held_out_loss,
        "loss": last and last.loss,
        "nll": last and last.nll,
        "kl_ref": last and last.kl_ref,
    }


def remove_other_checkpoints(store: RunStore, digest: str) -> None:
    """A checkpoint is three times the model in float32: keep only those of the model at hand."""
    folder = store.path(CHECKPOINTS)
    try:
        paths = store.fs.ls(folder, detail=False) if store.exists(CHECKPOINTS) else []
        others = sorted({path.rstrip("/").rsplit("/", 1)[1] for path in paths} - {digest})
        for name in others:
            store.remove(f"{CHECKPOINTS}/{name}")
    except OSError as error:  # the model is committed all the same
        logger.warning("Cannot remove the checkpoints of other trainings in %s: %s", folder, error)
        return
    if others:
        logger.info("Removed the checkpoints of other trainings in %s: %s", folder, others)
