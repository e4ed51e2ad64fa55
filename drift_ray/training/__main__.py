"""The training stage without Ray: ``torchrun -m drift_ray.training CONFIG.yaml [key=value …]``.

Resumes from ``checkpoints/DIGEST/torchrun`` of a run directory that all processes share on a disk.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from drift_ray.config import RunConfig
from drift_ray.config_file import load_config
from drift_ray.errors import DriftRayError, StageError
from drift_ray.lineage import claim_run
from drift_ray.pipeline import Pipeline
from drift_ray.store import CHECKPOINTS, RunStore
from drift_ray.training import stage
from drift_ray.training.checkpoint import CheckpointState, save_checkpoint
from drift_ray.training.worker import Process, train_policy
from drift_ray.weighting import stage as weighting


def main(path: str, *overrides: str) -> None:
    """Train the run of a configuration file, unless that is done."""
    config = load_config(path, overrides)
    pipeline = Pipeline(config)
    store, lineage = pipeline.store, pipeline.lineage
    if not store.is_local:
        raise StageError(
            f"{store} is not on a disk, where training without Ray keeps its checkpoints.",
            "Run `drift-ray train`, which keeps them anywhere.",
        )
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if rank == 0:
        claim_run(store, config, lineage)
    if not weighting.is_done(store, config, lineage):
        raise StageError(
            f"The rollouts in {store} are not weighed with these settings.",
            "Run `drift-ray weigh` first.",
        )
    weighting.check(store, config.weighting)
    if stage.is_done(store, digest=lineage.model):
        return
    device = torch.device("cpu")
    if config.training.num_gpus > 0:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        process = Process(rank=rank, world_size=world_size, device=device)
        _train(config, store, lineage.model, process)
    finally:
        if world_size > 1:
            dist.destroy_process_group()


def _train(config: RunConfig, store: RunStore, digest: str, process: Process) -> None:
    folder = Path(store.path(f"{CHECKPOINTS}/{digest}/torchrun"))

    def on_checkpoint(
        state: CheckpointState, model: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        if process.rank == 0:
            save_checkpoint(folder, state, model, optimizer)

    train_policy(
        config,
        store,
        digest=digest,
        process=process,
        resume_from=folder if folder.exists() else None,
        on_checkpoint=on_checkpoint,
    )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except DriftRayError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
