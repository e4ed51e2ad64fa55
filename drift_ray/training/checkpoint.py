"""Checkpoints without pickle: safetensors written by every rank of its shards, and a state file.

Whoever reads a checkpoint runs no code of whoever wrote it, and may have another number of ranks.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from drift_ray.errors import StageError
from drift_ray.training.early_stop import BEST, NOTHING_MEASURED, HeldOutRecord
from drift_ray.training.space import writing_to

STATE_FILE = "state.json"
_MOMENTS = ("exp_avg", "exp_avg_sq")
_DELETE = "Delete the run's checkpoints/ folder to train anew."


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointState:
    """Where a training stands, and which training it is."""

    step: int
    """Steps made."""
    data: str
    """:meth:`TrainingData.fingerprint`."""
    digest: str
    """Names the training: a function of everything that shapes its result."""
    held_out: HeldOutRecord = NOTHING_MEASURED
    """Of early stopping; the best parameters are saved too, once there are some."""
    round: int = 0
    """Of a training in rounds: the one that it is in, from 0."""
    round_began: int = 0
    """Steps made before that round."""
    moments_since: int = 0
    """Steps made before the optimizer began with the moments that it has."""


def save_checkpoint(
    folder: Path, state: CheckpointState, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Write this rank's part of a checkpoint; every rank has to call it.

    Args:
        folder: An empty or new folder, of this rank's own or shared by all. A checkpoint is the
            union of all ranks' folders.
        state: Written by rank 0.
        model: What is trained of it is saved, by parameter name.
        optimizer: AdamW over the same parameters, after at least one step.

    Raises:
        StorageError: No space left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with writing_to(folder), _as_it_was_raised():
        dcp.save(
            _tensors(model, optimizer, state),
            storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
        )
        if not dist.is_initialized() or dist.get_rank() == 0:
            with open(folder / STATE_FILE, "w") as file:
                file.write(json.dumps(asdict(state)))
                file.flush()
                os.fsync(file.fileno())


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, data: str, digest: str
) -> CheckpointState:
    """Put model and optimizer back into a checkpoint's state; every rank has to call it.

    Args:
        folder: What all ranks of :func:`save_checkpoint` wrote.
        model: Same architecture; written in place.
        optimizer: AdamW over the same parameters; its state is replaced.
        data: Fingerprint of the data at hand.
        digest: Of the training at hand.

    Returns:
        Where the training stands.

    Raises:
        StageError: The checkpoint is damaged, was made with other data or settings, or is of
            another model.
    """
    state = read_state(folder)
    for name, found, expected in (
        ("data", state.data, data),
        ("settings", state.digest, digest),
    ):
        if found != expected:
            raise StageError(
                f"The checkpoint {folder} was made with other training {name}.", _DELETE
            )
    for parameter in _trained(model).values():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(state.step - state.moments_since), device=parameter.device),
            **{kind: torch.zeros_like(parameter) for kind in _kinds(state)},
        }
    reader = HuggingFaceStorageReader(str(folder))
    tensors = _tensors(model, optimizer, state)
    with _damage_named(folder):
        metadata = reader.read_metadata().state_dict_metadata
    saved = {name: entry.size for name, entry in metadata.items()}
    if saved != {name: tensor.size() for name, tensor in tensors.items()}:
        raise StageError(
            f"The checkpoint {folder} belongs to a model of another architecture.", _DELETE
        )
    with torch.no_grad(), _damage_named(folder), _as_it_was_raised():
        dcp.load(tensors, storage_reader=reader)
    return state


def read_state(folder: Path) -> CheckpointState:
    """Where the training of a checkpoint stands.

    Raises:
        StageError: The checkpoint is damaged.
    """
    with _damage_named(folder):
        fields = json.loads((folder / STATE_FILE).read_text())
        return CheckpointState(**{**fields, "held_out": HeldOutRecord(**fields["held_out"])})


@contextmanager
def _as_it_was_raised() -> Iterator[None]:
    """PyTorch hides errors in one of its own, and warns of a process without peers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        try:
            yield
        except CheckpointException as error:
            cause, _ = next(iter(error.failures.values()))
            raise cause from error


@contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StageError(
            f"The checkpoint {folder} is damaged or of another version: {error}", _DELETE
        ) from error


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    # Tied parameters have one name here, hence one tensor in the checkpoint.
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _kinds(state: CheckpointState) -> tuple[str, ...]:
    """What the optimizer's state holds of every parameter, and a checkpoint too."""
    return (*_MOMENTS, BEST) if state.held_out.best_step else _MOMENTS


def _tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: CheckpointState
) -> dict[str, Tensor]:
    """Parameters and AdamW's moments by name; its step follows from the training's."""
    return {
        f"{kind}.{name}": parameter.detach()
        if kind == "model"
        else optimizer.state[parameter][kind]
        for kind in ("model", *_kinds(state))
        for name, parameter in _trained(model).items()
    }
