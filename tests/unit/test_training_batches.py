"""The order of the data depends on seed, epoch and step; ranks and budgets only divide it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.training.batches import BatchPlan, collate, deal
from tests.unit.training_cases import random_data


@given(
    num_samples=st.integers(1, 200),
    batch_size=st.integers(1, 70),
    num_epochs=st.integers(1, 3),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_epoch_holds_every_sample_once(
    num_samples: int, batch_size: int, num_epochs: int, seed: int
) -> None:
    plan = BatchPlan(
        num_samples=num_samples, batch_size=batch_size, num_epochs=num_epochs, seed=seed
    )
    batches = [plan.batch(step) for step in range(plan.num_steps)]
    assert len(batches) == plan.steps_per_epoch * num_epochs
    for epoch in range(num_epochs):
        own = batches[epoch * plan.steps_per_epoch : (epoch + 1) * plan.steps_per_epoch]
        assert sorted(np.concatenate(own).tolist()) == list(range(num_samples))
        assert all(len(batch) == batch_size for batch in own[:-1])


def test_epochs_and_seeds_differ() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return (
            BatchPlan(num_samples=50, batch_size=50, num_epochs=2, seed=seed).batch(epoch).tolist()
        )

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@given(
    lengths=st.lists(st.integers(1, 100), min_size=1, max_size=60),
    world_size=st.integers(1, 7),
    max_tokens=st.integers(1, 300),
)
def test_ranks_and_budgets_divide_a_batch(
    lengths: list[int], world_size: int, max_tokens: int
) -> None:
    all_lengths = np.array(lengths)
    batch = np.random.default_rng(0).permutation(len(lengths))
    shares = deal(batch, all_lengths, world_size=world_size, max_tokens=max_tokens)
    assert len(shares) == world_size
    pieces = [piece for share in shares for piece in share]
    assert sorted(np.concatenate(pieces).tolist()) == list(range(len(lengths)))
    for piece in pieces:
        assert len(piece) == 1 or all_lengths[piece].sum() <= max_tokens


def test_ranks_get_nearly_equal_tokens() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 64)
    shares = deal(np.arange(64), lengths, world_size=4, max_tokens=4096)
    tokens = [sum(lengths[piece].sum() for piece in share) for share in shares]
    assert max(tokens) - min(tokens) <= lengths.max()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_collate_keeps_tokens_and_finds_loss(tmp_path: Path, reduction: str) -> None:
    data = random_data(tmp_path)
    samples = np.array([7, 2, 11])
    micro = collate(data, samples, reduction)
    assert micro.cu_lengths.tolist() == [0, *np.cumsum(data.lengths[samples])]
    positions, weights = [], []
    for row, sample in enumerate(samples):
        own = slice(data.offsets[sample], data.offsets[sample + 1])
        packed = slice(*micro.cu_lengths[row : row + 2])
        np.testing.assert_array_equal(micro.token_ids[packed], data.token_ids[own])
        assert micro.position_ids[packed].tolist() == list(range(data.lengths[sample]))
        loss_columns = np.flatnonzero(data.loss_mask[own])
        positions += (micro.cu_lengths[row] + loss_columns).tolist()
        count = len(loss_columns) if reduction == "mean" else 1
        weights += [data.importance_weight[sample] / count] * len(loss_columns)
    assert micro.loss_positions.tolist() == positions
    np.testing.assert_allclose(micro.loss_weight, weights, rtol=1e-6)
    logprobs = np.concatenate(
        [data.ref_logprobs[data.offsets[s] : data.offsets[s + 1]] for s in samples]
    )
    np.testing.assert_array_equal(micro.ref_logprobs, logprobs[positions])
