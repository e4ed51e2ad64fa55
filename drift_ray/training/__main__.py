"""The training stage without Ray: ``torchrun -m drift_ray.training CONFIG.yaml [key=value …]``.

Resumes from ``checkpoints/DIGEST/torchrun`` of a run directory that all processes share on a disk.
"""

from __future__ import annotations

import os
import shutil
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
from drift_ray.training.metric_log import publish_metrics
from drift_ray.training.waves import Overlap
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
    if config.rounds.num_rounds > 1:
        raise StageError(
            f"rounds.num_rounds is {config.rounds.num_rounds}: training without Ray has nobody "
            "who samples between the rounds.",
            "Run `drift-ray run`.",
        )
    rank, local_rank = (int(os.environ.get(name, 0)) for name in ("RANK", "LOCAL_RANK"))
    if rank == 0:
        claim_run(store, config, lineage)
    if not weighting.is_done(store, config, lineage):
        raise StageError(
            f"The rollouts in {store} are not weighed with these settings.",
            "Run `drift-ray weigh` first.",
        )
    weighting.check(store, config.weighting)
    if stage.is_done(store, digest=lineage.model):
        if rank == 0:
            publish_metrics(store, lineage.model)
        return
    device = torch.device("cpu")
    if config.training.num_gpus > 0:
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    elif device.type == "cuda":
        # A GPU by itself is a group too: sharding brings its mixed precision.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    process = Process(rank=rank, local_rank=local_rank, device=device)
    try:
        _train(config, store, lineage.model, process, pipeline.overlap)
        if rank == 0:
            publish_metrics(store, lineage.model)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _train(
    config: RunConfig, store: RunStore, digest: str, process: Process, overlap: Overlap | None
) -> None:
    folder = Path(store.path(f"{CHECKPOINTS}/{digest}/torchrun"))

    def on_checkpoint(
        state: CheckpointState, model: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        temporary = folder / f".step-{state.step:09d}"
        if process.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        _wait_for_all()
        save_checkpoint(temporary, state, model, optimizer)
        _wait_for_all()
        if process.rank == 0:
            os.replace(temporary, folder / temporary.name[1:])
            for old in _checkpoints(folder)[: -config.training.keep_checkpoints]:
                shutil.rmtree(old)

    train_policy(
        config,
        store,
        digest=digest,
        process=process,
        resume_from=next(reversed(_checkpoints(folder)), None),
        on_checkpoint=on_checkpoint,
        overlap=overlap,
    )


def _checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob("step-*"))


def _wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except DriftRayError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
