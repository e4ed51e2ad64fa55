"""Which samples share a step, which rank computes them, and how they become rectangles.

The samples of a step depend on (seed, epoch, step) alone, never on the number of ranks: a run
that continues on fewer workers sees the same data in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from drift_ray.training.data import TrainingData

Indices = npt.NDArray[np.int64]

PAD_TOKEN_ID = 0
"""Any id of the vocabulary: padding stands on the right, where causal attention cannot see it."""


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


def rank_share(batch: Indices, lengths: Indices, *, rank: int, world_size: int) -> Indices:
    """A rank's part of a batch, longest first; may be empty.

    Samples are dealt out by length, so every rank gets nearly the same number of tokens.
    """
    return batch[np.argsort(-lengths[batch], kind="stable")][rank::world_size]


def split_by_tokens(share: Indices, lengths: Indices, *, max_tokens: int) -> Iterator[Indices]:
    """Cut a share (longest first) so that padding each piece to a rectangle keeps the budget.

    A single sample longer than ``max_tokens`` becomes a piece of its own.
    """
    start = 0
    while start < len(share):
        end = start + max(1, max_tokens // int(lengths[share[start]]))
        yield share[start:end]
        start = end


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MicroBatch:
    """Samples as one rectangle, and where in it the loss tokens stand."""

    token_ids: npt.NDArray[np.int64]
    """Shape ``[num_samples, max_length]``, padded on the right."""
    loss_rows: Indices
    """Shape ``[num_loss_tokens]``: row of each loss token; sorted."""
    loss_columns: Indices
    """Shape ``[num_loss_tokens]``: its column, >= 1."""
    ref_logprobs: npt.NDArray[np.float32]
    """Shape ``[num_loss_tokens]``: log π_ref of each loss token."""
    loss_counts: npt.NDArray[np.int64]
    """Shape ``[num_samples]``: loss tokens of each row, >= 1."""
    importance_weight: npt.NDArray[np.float32]
    """Shape ``[num_samples]``."""
    num_tokens: int
    """Tokens that are not padding."""


def collate(data: TrainingData, samples: Indices) -> MicroBatch:
    """Gather samples into a rectangle as wide as the longest of them."""
    starts, lengths = data.offsets[samples], data.lengths[samples]
    columns = np.arange(lengths.max())
    is_token = columns < lengths[:, None]
    source = (starts[:, None] + columns)[is_token]

    token_ids = np.full(is_token.shape, PAD_TOKEN_ID, dtype=np.int64)
    token_ids[is_token] = data.token_ids[source]
    loss_mask = np.zeros(is_token.shape, dtype=np.bool_)
    loss_mask[is_token] = data.loss_mask[source]
    loss_rows, loss_columns = np.nonzero(loss_mask)
    return MicroBatch(
        token_ids=token_ids,
        loss_rows=loss_rows,
        loss_columns=loss_columns,
        ref_logprobs=data.ref_logprobs[source][data.loss_mask[source]],
        loss_counts=loss_mask.sum(axis=1),
        importance_weight=data.importance_weight[samples].astype(np.float32),
        num_tokens=len(source),
    )
