"""Checkpoints without pickle: parameters and AdamW's moments by parameter name, and a state file.

Whoever reads a checkpoint runs no code of whoever wrote it.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from drift_ray.errors import StageError
from drift_ray.training.space import writing_to

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointState:
    """Where a training stands, and which training it is."""

    step: int
    """Steps made."""
    data: str
    """:meth:`TrainingData.fingerprint`."""
    digest: str
    """Names the training: a function of everything that shapes its result."""


def save_checkpoint(
    folder: Path, state: CheckpointState, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Write a checkpoint; the folder appears whole or not at all, and replaces an older one.

    Raises:
        StorageError: No space left.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with writing_to(folder):
        _write(temporary, state, model, optimizer)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def _write(
    folder: Path, state: CheckpointState, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    folder.mkdir(parents=True)
    # Tied parameters have one name here, hence one tensor in the file.
    parameters = dict(model.named_parameters())
    save_file({name: p.detach().contiguous() for name, p in parameters.items()}, _model(folder))
    moments = {
        f"{name}.{key}": value.contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    save_file(moments, folder / OPTIMIZER_FILE)
    (folder / STATE_FILE).write_text(json.dumps(asdict(state)))


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, data: str, digest: str
) -> int:
    """Put model and optimizer back into a checkpoint's state.

    Args:
        folder: What :func:`save_checkpoint` wrote.
        model: Same architecture; written in place.
        optimizer: Over the same parameters; its state is replaced.
        data: Fingerprint of the data at hand.
        digest: Of the training at hand.

    Returns:
        Steps made so far.

    Raises:
        StageError: The checkpoint was made with other data or settings, or of another model.
    """
    state = CheckpointState(**json.loads((folder / STATE_FILE).read_text()))
    for name, found, expected in (
        ("data", state.data, data),
        ("settings", state.digest, digest),
    ):
        if found != expected:
            raise StageError(
                f"The checkpoint {folder} was made with other training {name}.",
                "Delete the run's checkpoints/ folder to train anew.",
            )
    parameters = dict(model.named_parameters())
    saved = load_file(_model(folder))
    if {n: p.shape for n, p in parameters.items()} != {n: t.shape for n, t in saved.items()}:
        raise StageError(
            f"The checkpoint {folder} belongs to a model of another architecture.",
            "Delete the run's checkpoints/ folder to train anew.",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])
    for key, value in load_file(folder / OPTIMIZER_FILE).items():
        name, slot = key.rsplit(".", 1)
        optimizer.state[parameters[name]][slot] = value.to(parameters[name].device)
    return state.step


def _model(folder: Path) -> Path:
    return folder / MODEL_FILE
