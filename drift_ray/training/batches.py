"""Which samples share a step, which rank computes them, and how they become one row of tokens.

The samples of a step depend on (seed, waves, step) alone, never on the number of ranks: a run
that continues on fewer workers sees the same data in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from drift_ray.training.data import TrainingData

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """The order of the data over all epochs.

    Data may come in waves, while trajectories are still sampled. The first epoch takes wave after
    wave, each in an order of its own; a batch may hold the last samples of one and the first of
    the next. Later epochs shuffle everything.
    """

    num_samples: int
    """Of all waves so far."""
    batch_size: int
    num_epochs: int
    seed: int
    earlier: tuple[int, ...] = ()
    """Samples that there were before each wave but the first."""
    is_complete: bool = True
    """Whether no further wave comes."""
    num_planned: int | None = None
    """Samples that were expected when only the first wave was known; None: it is the only one."""

    @property
    def steps_per_epoch(self) -> int:
        """The last batch of an epoch may be smaller; none is left out."""
        return -(-self.num_samples // self.batch_size)

    @property
    def num_steps(self) -> int:
        """Steps over all epochs; as many as are expected while waves come."""
        if not self.is_complete:
            return max(self.num_schedule_steps, self.steps_per_epoch * self.num_epochs)
        return self.steps_per_epoch * self.num_epochs

    @property
    def num_schedule_steps(self) -> int:
        """Steps that the schedule of the learning rate is laid out for: known from the start."""
        num_samples = self.num_samples if self.num_planned is None else self.num_planned
        return -(-num_samples // self.batch_size) * self.num_epochs

    def has_batch(self, step: int) -> bool:
        """Whether it is settled which samples a step takes, or that there is no such step."""
        return self.is_complete or (step + 1) * self.batch_size <= self.num_samples

    def with_wave(self, num_samples: int, *, is_last: bool) -> BatchPlan:
        """The plan after a further wave; ``num_samples`` counts all samples there are then."""
        return replace(
            self,
            num_samples=num_samples,
            earlier=(*self.earlier, self.num_samples),
            is_complete=is_last,
        )

    def batch(self, step: int) -> Indices:
        """Samples of a 0-based step over all ranks, shape ``[<= batch_size]``."""
        epoch, index = divmod(step, self.steps_per_epoch)
        edges = (0, *self.earlier, self.num_samples) if epoch == 0 else (0, self.num_samples)
        order = _epoch_order(edges, self.seed, epoch)
        return order[index * self.batch_size : (index + 1) * self.batch_size]


@lru_cache(maxsize=2)
def _epoch_order(edges: tuple[int, ...], seed: int, epoch: int) -> Indices:
    """Every wave shuffled by itself; ``edges``: where each begins, and the end."""
    pieces = [
        # Philox is keyed, not seeded: nearby seeds, epochs and waves give unrelated orders.
        start
        + np.random.Generator(np.random.Philox(key=[seed, epoch + (wave << 32)])).permutation(
            end - start
        )
        for wave, (start, end) in enumerate(pairwise(edges))
    ]
    return np.concatenate(pieces)


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
        end = int(np.searchsorted(total, done + max_tokens, side="right"))
        # Where attention has to pad, its rectangle is no larger than twice the budget.
        end = max(start + 1, min(end, start + 2 * max_tokens // int(lengths[share[start]])))
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
