"""The loss is the published formula, however its batch is cut."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from drift_ray.config import LoraConfig, TrainingConfig
from drift_ray.training.data import TrainingData
from drift_ray.training.loss import WeightedNLL, token_nll
from drift_ray.training.parallel import parallelize
from drift_ray.training.passes import batch_gradient
from tests.unit.training_cases import (
    flat_gradient,
    gradient,
    gradients_of_rank,
    in_processes,
    policy_for,
    random_data,
    tiny_model,
)

REDUCTIONS = ("mean", "sum")
LORA = LoraConfig(rank=3, alpha=5.0)


@pytest.fixture
def data(tmp_path: Path) -> TrainingData:
    return random_data(tmp_path)


def formula(
    data: TrainingData, reduction: str, model: LlamaForCausalLM | None = None
) -> tuple[float, np.ndarray]:
    """Loss and gradient of all samples, one at a time, from full logits."""
    model = model or tiny_model()
    model.set_attn_implementation("eager")
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
    return loss.item(), flat_gradient(model)


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the order of float32 sums, whose rest is relative to the largest of them."""
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("max_tokens", [42, 100, 10_000])
def test_any_micro_batches_give_the_formula(
    data: TrainingData, reduction: str, max_tokens: int
) -> None:
    config = TrainingConfig(token_reduction=reduction, micro_batch_tokens=max_tokens)
    expected_loss, expected = formula(data, reduction)
    found, sums = gradient(data, config, np.arange(len(data)))
    assert_same(found, expected)
    assert sums.loss / len(data) == pytest.approx(expected_loss, rel=1e-5)
    assert sums.num_loss_tokens == data.loss_mask.sum()
    assert sums.num_tokens == len(data.token_ids)


def test_signed_weights_give_the_formula(data: TrainingData) -> None:
    signs = np.where(np.arange(len(data)) % 3, 1.0, -1.0)
    signed = dataclasses.replace(data, importance_weight=signs * data.importance_weight)
    expected_loss, expected = formula(signed, "sum")
    found, sums = gradient(
        signed, TrainingConfig(token_reduction="sum", micro_batch_tokens=100), np.arange(len(data))
    )
    assert_same(found, expected)
    assert sums.loss / len(data) == pytest.approx(expected_loss, rel=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_any_attention_gives_the_formula(data: TrainingData, attention: str) -> None:
    model = tiny_model()
    model.set_attn_implementation(attention)
    config = TrainingConfig(micro_batch_tokens=100)
    batch_gradient(parallelize(WeightedNLL(model), config), data, np.arange(len(data)), config)
    _, expected = formula(data, "mean")
    np.testing.assert_allclose(flat_gradient(model), expected, rtol=1e-5, atol=1e-6)


def test_recomputed_activations_give_the_formula(data: TrainingData) -> None:
    config = TrainingConfig(micro_batch_tokens=100, activation_checkpointing=True)
    found, _ = gradient(data, config, np.arange(len(data)))
    _, expected = formula(data, "mean")
    assert_same(found, expected)


@pytest.mark.parametrize("settings", [{}, {"activation_checkpointing": True}])
def test_adapters_give_the_formula(data: TrainingData, settings: dict[str, Any]) -> None:
    config = TrainingConfig(micro_batch_tokens=100, lora=LORA, **settings)
    expected_loss, expected = formula(data, "mean", policy_for(config))
    found, sums = gradient(data, config, np.arange(len(data)))
    assert_same(found, expected)
    assert sums.loss / len(data) == pytest.approx(expected_loss, rel=1e-5)


@pytest.mark.parametrize(
    ("world_size", "settings"),
    [
        (2, {"strategy": "ddp"}),
        (2, {"strategy": "fsdp"}),
        (2, {"strategy": "fsdp", "activation_checkpointing": True}),
        (4, {"strategy": "fsdp"}),
        (2, {"strategy": "ddp", "lora": LORA}),
        (2, {"strategy": "fsdp", "lora": LORA}),
    ],
)
def test_ranks_give_the_gradient_of_one(
    data: TrainingData, tmp_path: Path, world_size: int, settings: dict[str, Any]
) -> None:
    # The second batch leaves nothing for rank 1, the third is uneven.
    batches = [np.arange(len(data)), np.array([3]), np.array([1, 5, 6])]
    config = TrainingConfig(micro_batch_tokens=100, **settings)
    in_processes(gradients_of_rank, world_size, tmp_path, data, config, batches)
    for number, batch in enumerate(batches):
        flat, sums = gradient(data, config, batch)
        for rank in range(world_size):
            found = np.load(tmp_path / f"{rank}-{number}.npz")
            assert_same(found["gradient"], flat)
            *exact, cpu_s = found["sums"]  # seconds differ
            np.testing.assert_allclose(exact, sums[:-1], rtol=1e-5)
            assert cpu_s > 0


def test_kl_is_the_mean_log_ratio(data: TrainingData) -> None:
    _, sums = gradient(data, TrainingConfig(), np.arange(len(data)))
    expected = data.ref_logprobs[data.loss_mask].sum() + sums.nll
    assert sums.kl_ref == pytest.approx(expected, rel=1e-4)


def test_bfloat16_is_close(data: TrainingData) -> None:
    batch = np.arange(len(data))
    _, exact = gradient(data, TrainingConfig(), batch)
    _, rounded = gradient(data, TrainingConfig(dtype="bfloat16"), batch)
    assert rounded.loss != exact.loss
    assert rounded.num_tokens == exact.num_tokens
    assert rounded.loss == pytest.approx(exact.loss, rel=0.02)


def test_bfloat16_does_not_round_the_weights(data: TrainingData) -> None:
    """With every sample of weight 1 + 2^-10, the loss is that share larger: bfloat16 has 2^-8."""
    batch = np.arange(len(data))
    losses = [
        gradient(
            dataclasses.replace(data, importance_weight=np.full(len(data), weight)),
            TrainingConfig(dtype="bfloat16"),
            batch,
        )[1].loss
        for weight in (1.0, 1.0 + 2**-10)
    ]
    assert losses[1] / losses[0] - 1 == pytest.approx(2**-10, rel=1e-2)


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
