"""Checkpoints without pickle: parameters and AdamW's moments by parameter name, and a state file.

Whoever reads a checkpoint runs no code of whoever wrote it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from drift_ray.config import TrainingConfig
from drift_ray.errors import StageError

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"

# What may change between two attempts at the same training.
_FREE_SETTINGS = {
    "num_workers",
    "num_cpus",
    "num_gpus",
    "micro_batch_tokens",
    "checkpoint_every_steps",
    "max_failures",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointState:
    """Where a training stands, and which training it is."""

    step: int
    """Steps made."""
    data: str
    """:meth:`TrainingData.fingerprint`."""
    settings: str
    """:func:`settings_digest`."""


def settings_digest(config: TrainingConfig, seed: int) -> str:
    """Hash of the settings that decide the trajectory of the parameters."""
    settings = config.model_dump(mode="json", exclude=_FREE_SETTINGS) | {"seed": seed}
    text = json.dumps(settings, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def save_checkpoint(
    folder: Path, state: CheckpointState, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Write a checkpoint; the folder appears whole or not at all, and replaces an older one."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    # Tied parameters have one name here, hence one tensor in the file.
    parameters = dict(model.named_parameters())
    save_file({name: p.detach().contiguous() for name, p in parameters.items()}, _model(temporary))
    moments = {
        f"{name}.{key}": value.contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    save_file(moments, temporary / OPTIMIZER_FILE)
    (temporary / STATE_FILE).write_text(json.dumps(asdict(state)))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, data: str, settings: str
) -> int:
    """Put model and optimizer back into a checkpoint's state.

    Args:
        folder: What :func:`save_checkpoint` wrote.
        model: Same architecture; written in place.
        optimizer: Over the same parameters; its state is replaced.
        data: Fingerprint of the data at hand.
        settings: Digest of the settings at hand.

    Returns:
        Steps made so far.

    Raises:
        StageError: The checkpoint was made with other data or settings, or of another model.
    """
    state = CheckpointState(**json.loads((folder / STATE_FILE).read_text()))
    for name, found, expected in (
        ("data", state.data, data),
        ("settings", state.settings, settings),
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
