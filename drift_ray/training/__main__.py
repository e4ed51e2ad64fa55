"""The training stage without Ray: ``torchrun -m drift_ray.training CONFIG.yaml [key=value …]``.

Resumes from ``checkpoints/torchrun`` of a run directory that all processes share on a disk.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from drift_ray.config import load_config
from drift_ray.errors import DriftRayError
from drift_ray.lineage import trace
from drift_ray.store import CHECKPOINTS, RunStore
from drift_ray.tasks.sources import load_prompts
from drift_ray.training.checkpoint import CheckpointState, save_checkpoint
from drift_ray.training.worker import Process, train_policy


def main(path: str, *overrides: str) -> None:
    """Train the run of a configuration file."""
    config = load_config(path, overrides)
    task, seed = config.task, config.seed
    train = load_prompts(task.train, task=task.name, seed=seed)
    test = load_prompts(task.test, task=task.name, seed=seed)
    store = RunStore(config.run)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cpu")
    if config.training.num_gpus > 0:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    digest = trace(config, train, test).model
    folder = Path(store.path(f"{CHECKPOINTS}/torchrun/{digest}"))

    def on_checkpoint(
        state: CheckpointState, model: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        if rank == 0:
            save_checkpoint(folder, state, model, optimizer)

    train_policy(
        config,
        store,
        digest=digest,
        process=Process(rank=rank, world_size=world_size, device=device),
        resume_from=folder if folder.exists() else None,
        on_checkpoint=on_checkpoint,
    )
    if world_size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except DriftRayError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
