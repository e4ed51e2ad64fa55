"""Memory of GPUs and of this machine, against the size of the model."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from drift_ray.config import OpenAIConfig, RunConfig, VllmConfig
from drift_ray.doctor.findings import Finding, error, ok, warning
from drift_ray.errors import ModelError
from drift_ray.models import resolve_model

GIB = 1 << 30
_TRAINED_BYTES = 16
"""Of a trained parameter: itself, its gradient and two moments of AdamW, float32 each."""
_FULL_FRAC = 0.8
"""Of memory: beyond it, little is left for caches and activations."""
_MOST_HEADER_BYTES = 1 << 28
"""A damaged length shall not fill the memory."""
_HEADER_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What one process keeps of the model for good; caches and activations come on top."""

    who: str
    num_bytes: float
    on_gpu: bool
    remedy: str


def num_parameters(folder: Path) -> int:
    """Parameters of a model folder, by the headers of its safetensors files alone.

    Raises:
        ModelError: A file is damaged.
    """
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with open(path, "rb") as file:
                (length,) = _HEADER_LENGTH.unpack(file.read(_HEADER_LENGTH.size))
                header = json.loads(file.read(min(length, _MOST_HEADER_BYTES)))
            shapes = [each["shape"] for name, each in header.items() if name != "__metadata__"]
        except (struct.error, ValueError, LookupError, TypeError, AttributeError, OverflowError):
            raise ModelError(
                f"{path} is no complete safetensors file.", "Download or copy the model again."
            ) from None
        total += sum(_product(shape) for shape in shapes)
    return total


def needs(config: RunConfig, parameters: int) -> list[Need]:
    """Memory that a replica's device and a training worker need for a model of this size."""
    found = []
    engine = config.replicas.engine
    if isinstance(engine, VllmConfig):
        on_gpu = config.replicas.num_gpus > 0
        width = 2 if on_gpu else 4
        found.append(
            Need(
                who="a replica's device",
                num_bytes=width * parameters / engine.world_size,
                on_gpu=on_gpu,
                remedy="Spread an engine over more devices "
                "(replicas.engine.arguments.tensor_parallel_size), or take a smaller model.",
            )
        )
    training = config.training
    on_gpu = training.num_gpus > 0
    is_sharded = training.strategy == "fsdp" or (training.strategy == "auto" and on_gpu)
    share = training.num_workers.max if is_sharded else 1
    trained = 4 if training.lora is not None else _TRAINED_BYTES
    found.append(
        Need(
            who="a training worker",
            num_bytes=trained * parameters / share,
            on_gpu=on_gpu,
            remedy="Share the model among more workers (training.num_workers, training.strategy "
            "fsdp), or train adapters (training.lora).",
        )
    )
    return found


def check_memory(config: RunConfig) -> Iterator[Finding]:
    """The largest process of each kind against the devices of this machine."""
    parameters = num_parameters(resolve_model(config.model.path))
    wanted = needs(config, parameters)
    yield ok("model size", f"{parameters:,} parameters")
    is_elsewhere = bool(os.environ.get("RAY_ADDRESS"))
    gpus = gpu_memory()
    for need in wanted:
        if need.on_gpu and not gpus:
            found = warning if is_elsewhere else error
            yield found(
                "memory",
                f"{need.who} asks for a GPU; this machine has none.",
                "Run the doctor where the work runs."
                if is_elsewhere
                else "Set replicas.num_gpus and training.num_gpus to 0, or RAY_ADDRESS to a "
                "cluster with GPUs; where there is one, look whether nvidia-smi finds it.",
            )
        else:
            yield memory_finding(need, min(gpus) if need.on_gpu else machine_memory())
    uses_openai = isinstance(config.replicas.engine, OpenAIConfig)
    num_gpus = 0 if uses_openai else config.replicas.num_gpus * config.replicas.num_replicas.min
    num_gpus = max(num_gpus, config.training.num_gpus * config.training.num_workers.min)
    if gpus and num_gpus > len(gpus) and not is_elsewhere:
        yield error(
            "gpus",
            f"{num_gpus:g} GPUs are wanted at least, this machine has {len(gpus)}.",
            "Lower replicas.num_replicas or training.num_workers.",
        )


def memory_finding(need: Need, available: int) -> Finding:
    """Compare a need with the bytes of a device."""
    where = "GPU" if need.on_gpu else "machine"
    said = (
        f"{need.who} keeps {need.num_bytes / GIB:.2f} GiB of the model; the {where} has "
        f"{available / GIB:.1f} GiB"
    )
    if need.num_bytes > available:
        return error("memory", f"{said}.", need.remedy)
    if need.num_bytes > _FULL_FRAC * available:
        return warning("memory", f"{said}, so little is left for all else.", need.remedy)
    return ok("memory", said)


def gpu_memory() -> list[int]:
    """Bytes of each GPU that this machine shows, as ``nvidia-smi`` tells; empty without one."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        shown = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [int(line) << 20 for line in shown.stdout.split() if line.isdecimal()]


def machine_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
