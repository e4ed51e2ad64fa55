"""The loss is the published formula, however its batch is cut."""

from __future__ import annotations

import dataclasses
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch.nn.functional import cross_entropy

from drift_ray.config import TrainingConfig
from drift_ray.training.data import TrainingData
from drift_ray.training.loss import token_nll
from tests.unit.training_cases import gradient, gradient_of_rank, random_data, tiny_model

REDUCTIONS = ("mean", "sum")


@pytest.fixture
def data(tmp_path: Path) -> TrainingData:
    return random_data(tmp_path)


def formula(data: TrainingData, reduction: str) -> tuple[float, np.ndarray]:
    """Loss and gradient of all samples, one at a time, from full logits."""
    model = tiny_model()
    loss = torch.zeros(())
    for index in range(len(data)):
        own = slice(data.offsets[index], data.offsets[index + 1])
        token_ids = torch.from_numpy(data.token_ids[own].astype(np.int64))
        log_probs = model(input_ids=token_ids[None]).logits[0].log_softmax(-1)
        nll = [-log_probs[t - 1, token_ids[t]] for t in np.nonzero(data.loss_mask[own])[0].tolist()]
        of_sample = torch.stack(nll).mean() if reduction == "mean" else torch.stack(nll).sum()
        loss = loss + float(data.importance_weight[index]) * of_sample
    loss = loss / len(data)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()]).numpy()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("max_tokens", [1, 40, 100, 10_000])
def test_any_micro_batches_give_the_formula(
    data: TrainingData, reduction: str, max_tokens: int
) -> None:
    config = TrainingConfig(token_reduction=reduction, micro_batch_tokens=max_tokens)
    expected_loss, expected = formula(data, reduction)
    found, sums = gradient(data, config, np.arange(len(data)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert sums[0] / len(data) == pytest.approx(expected_loss, rel=1e-5)
    assert sums[3:].tolist() == [data.loss_mask.sum(), len(data.token_ids)]


def test_signed_weights_give_the_formula(data: TrainingData) -> None:
    signs = np.where(np.arange(len(data)) % 3, 1.0, -1.0)
    signed = dataclasses.replace(data, importance_weight=signs * data.importance_weight)
    expected_loss, expected = formula(signed, "sum")
    found, sums = gradient(
        signed, TrainingConfig(token_reduction="sum", micro_batch_tokens=100), np.arange(len(data))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert sums[0] / len(data) == pytest.approx(expected_loss, rel=1e-5)


def test_two_ranks_give_the_gradient_of_one(data: TrainingData, tmp_path: Path) -> None:
    # The second batch leaves nothing for rank 1, the third is uneven.
    batches = [np.arange(len(data)), np.array([3]), np.array([1, 5, 6])]
    config = TrainingConfig(micro_batch_tokens=100)
    # Both ranks are forked from one clean process, which imports what they need once.
    multiprocessing.set_forkserver_preload([gradient_of_rank.__module__])
    arguments = 2, tmp_path, data, config, batches
    mp.start_processes(gradient_of_rank, arguments, nprocs=2, start_method="forkserver")
    for number, batch in enumerate(batches):
        flat, sums = gradient(data, config, batch)
        for rank in range(2):
            found = np.load(tmp_path / f"{rank}-{number}.npz")
            np.testing.assert_allclose(found["gradient"], flat, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(found["sums"], sums, rtol=1e-5)


def test_kl_is_the_mean_log_ratio(data: TrainingData) -> None:
    _, sums = gradient(data, TrainingConfig(), np.arange(len(data)))
    nll, kl_ref = sums[1], sums[2]
    expected = data.ref_logprobs[data.loss_mask].sum() + nll
    assert kl_ref == pytest.approx(expected, rel=1e-4)


def test_bfloat16_is_close(data: TrainingData) -> None:
    batch = np.arange(len(data))
    _, exact = gradient(data, TrainingConfig(), batch)
    _, rounded = gradient(data, TrainingConfig(dtype="bfloat16"), batch)
    assert rounded[0] != exact[0]
    assert rounded[0] == pytest.approx(exact[0], rel=0.02)


@pytest.mark.parametrize("num_tokens", [3, 8, 21])
def test_chunks_change_nothing(num_tokens: int) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(6, 10, bias=False)
    hidden = torch.randn(num_tokens, 6, requires_grad=True)
    targets = torch.randint(0, 10, (num_tokens,))
    factor = torch.rand(num_tokens)
    (factor * cross_entropy(head(hidden), targets, reduction="none")).sum().backward()
    assert hidden.grad is not None
    assert head.weight.grad is not None
    expected = hidden.grad.clone(), head.weight.grad.clone()
    hidden.grad = head.weight.grad = None

    (factor * token_nll(hidden, head, targets, max_logits=80)).sum().backward()  # 8 tokens each
    torch.testing.assert_close((hidden.grad, head.weight.grad), expected)
