"""Which samples share a step, which rank computes them, and how they become one row of tokens.

The samples of a step depend on (seed, epoch, step) alone, never on the number of ranks: a run
that continues on fewer workers sees the same data in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from drift_ray.training.data import TrainingData

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """The order of the data over all epochs."""

    num_samples: int
    batch_size: int
    num_epochs: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """The last batch of an epoch may be smaller; none is left out."""
        return -(-self.num_samples // self.batch_size)

    @property
    def num_steps(self) -> int:
        """Steps over all epochs."""
        return self.steps_per_epoch * self.num_epochs

    def batch(self, step: int) -> Indices:
        """Samples of a 0-based step over all ranks, shape ``[<= batch_size]``."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = _epoch_order(self.num_samples, self.seed, epoch)
        return order[index * self.batch_size : (index + 1) * self.batch_size]


@lru_cache(maxsize=2)
def _epoch_order(num_samples: int, seed: int, epoch: int) -> Indices:
    # Philox is keyed, not seeded: nearby seeds and epochs give unrelated orders.
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_samples)


def deal(
    batch: Indices, lengths: Indices, *, world_size: int, max_tokens: int
) -> list[list[Indices]]:
    """Who computes which samples of a batch together.

    Samples are dealt out by length, so every rank gets nearly the same number of tokens, and those
    of one micro-batch are nearly equally long.

    Args:
        batch: Samples of a step.
        lengths: Tokens of every sample there is.
        world_size: Ranks to deal to.
        max_tokens: Of a micro-batch; a longer sample makes one of its own.

    Returns:
        For every rank its micro-batches; none for a rank without samples.
    """
    longest_first = batch[np.argsort(-lengths[batch], kind="stable")]
    return [
        _cut(longest_first[rank::world_size], lengths, max_tokens) for rank in range(world_size)
    ]


def _cut(share: Indices, lengths: Indices, max_tokens: int) -> list[Indices]:
    total = np.cumsum(lengths[share])
    pieces, start, done = [], 0, 0
    while start < len(share):
        end = max(start + 1, int(np.searchsorted(total, done + max_tokens, side="right")))
        pieces.append(share[start:end])
        start, done = end, int(total[end - 1])
    return pieces


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MicroBatch:
    """Samples back to back in one row, without padding."""

    token_ids: npt.NDArray[np.int64]
    """Shape ``[num_tokens]``."""
    position_ids: npt.NDArray[np.int64]
    """Shape ``[num_tokens]``: from 0 in every sample."""
    cu_lengths: npt.NDArray[np.int32]
    """Shape ``[num_samples + 1]``: where each sample begins, and the end."""
    loss_positions: Indices
    """Shape ``[num_loss_tokens]``: where the loss tokens stand; the token before one is of the
    same sample and predicts it."""
    loss_weight: npt.NDArray[np.float32]
    """Shape ``[num_loss_tokens]``: what the token's negative log-likelihood counts: the importance
    weight of its sample, divided by the sample's loss tokens if their mean is wanted."""
    ref_logprobs: npt.NDArray[np.float32]
    """Shape ``[num_loss_tokens]``: log π_ref of each loss token."""


def collate(
    data: TrainingData, samples: Indices, token_reduction: Literal["mean", "sum"]
) -> MicroBatch:
    """Gather samples into one row.

    Args:
        data: All samples.
        samples: Which of them, in this order.
        token_reduction: NLL of a trajectory: mean or sum over its loss tokens.
    """
    lengths = data.lengths[samples]
    cu_lengths = np.concatenate([[0], np.cumsum(lengths)])
    position_ids = np.arange(cu_lengths[-1]) - np.repeat(cu_lengths[:-1], lengths)
    source = np.repeat(data.offsets[samples], lengths) + position_ids
    loss_mask = data.loss_mask[source]
    loss_positions = np.flatnonzero(loss_mask)
    num_loss_tokens = np.add.reduceat(loss_mask, cu_lengths[:-1], dtype=np.int64)
    weight = data.importance_weight[samples]
    if token_reduction == "mean":
        weight = weight / num_loss_tokens
    return MicroBatch(
        token_ids=data.token_ids[source].astype(np.int64),
        position_ids=position_ids,
        cu_lengths=cu_lengths.astype(np.int32),
        loss_positions=loss_positions,
        loss_weight=np.repeat(weight, num_loss_tokens).astype(np.float32),
        ref_logprobs=data.ref_logprobs[source[loss_positions]],
    )
