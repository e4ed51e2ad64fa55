"""What all ranks do together with the samples of a batch: a gradient, or only their loss."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from drift_ray.config import TrainingConfig
from drift_ray.training.batches import MicroBatch, collate, deal
from drift_ray.training.data import TrainingData
from drift_ray.training.parallel import backward_context, forget_whole_parameters


class BatchSums(NamedTuple):
    """Sums over a batch and all ranks."""

    loss: float
    nll: float
    kl_ref: float
    num_loss_tokens: float
    num_tokens: float
    due: float
    """Ranks that want a checkpoint now. Their clocks differ, and all have to write it."""
    cpu_s: float
    """CPU seconds since the time that each rank named."""


def batch_gradient(
    module: nn.Module,
    data: TrainingData,
    batch: npt.NDArray[np.int64],
    config: TrainingConfig,
    *,
    due: bool = False,
    cpu_since_s: float = 0.0,
) -> BatchSums:
    """Add the gradient of the batch's mean loss to that of every parameter, on every rank.

    Args:
        module: What :func:`parallelize` returned.
        data: All samples.
        batch: Samples of the step over all ranks.
        config: Hyperparameters.
        due: Whether this rank wants a checkpoint.
        cpu_since_s: Of this process, by ``time.process_time()``: from when on CPU time counts.
    """
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    device = next(module.parameters()).device
    sums = torch.zeros(len(BatchSums._fields), dtype=torch.float64, device=device)
    sums[-2] = due
    for piece in _own_pieces(data, batch, config):
        with backward_context(module, last=piece.last):
            with _autocast(module, config):
                found = module(piece.micro)
            # Ranks are averaged over, but a batch's loss is a sum over them.
            (found.loss * (0.0 if piece.idle else world_size / len(batch))).backward()
        if not piece.idle:
            num_tokens = len(piece.micro.token_ids)
            counts = sums.new_tensor([len(piece.micro.loss_positions), num_tokens])
            sums[:-2] += torch.cat([torch.stack([s.detach() for s in found]), counts])
    sums[-1] = time.process_time() - cpu_since_s
    if dist.is_initialized():
        dist.all_reduce(sums)
    return BatchSums(*sums.tolist())


@torch.no_grad()
def evaluate(module: nn.Module, data: TrainingData, config: TrainingConfig) -> float:
    """Mean over all samples of w_i · reduce_t NLL_it; the same number on every rank.

    Args:
        module: What :func:`parallelize` returned.
        data: Held-out samples.
        config: Hyperparameters.
    """
    device = next(module.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    for piece in _own_pieces(data, np.arange(len(data)), config):
        with _autocast(module, config):
            loss = module(piece.micro).loss
        if not piece.idle:
            total += loss
    forget_whole_parameters(module)
    if dist.is_initialized():
        dist.all_reduce(total)
    return float(total) / len(data)


class _Piece(NamedTuple):
    micro: MicroBatch
    idle: bool
    """Whether it only keeps the other ranks company."""
    last: bool


def _own_pieces(
    data: TrainingData, batch: npt.NDArray[np.int64], config: TrainingConfig
) -> Iterator[_Piece]:
    """This rank's micro-batches of a batch, and as many on every rank.

    Shards meet in every round: a rank that has nothing left repeats a sample for nothing.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    shares = deal(batch, data.lengths, world_size=world_size, max_tokens=config.micro_batch_tokens)
    own = shares[rank]
    num_rounds = max(map(len, shares))
    for index in range(num_rounds):
        idle = index >= len(own)
        samples = shares[0][-1][-1:] if idle else own[index]
        micro = collate(data, samples, config.token_reduction)
        yield _Piece(micro, idle, last=index == num_rounds - 1)


def _autocast(module: nn.Module, config: TrainingConfig) -> torch.autocast:
    # Shards have a precision of their own.
    wanted = config.dtype == "bfloat16" and not isinstance(module, FSDPModule)
    device = next(module.parameters()).device
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)
