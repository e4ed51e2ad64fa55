"""Effective samples whatever the signs; FLOPs by hand, from the shapes of the tiny model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drift_ray.config import LoraConfig
from drift_ray.training.lora import add_adapters
from drift_ray.training.monitors import (
    StepFlops,
    count_flops,
    effective_samples,
    peak_flops,
    peak_memory_gib,
)
from tests.unit.training_cases import VOCAB_SIZE, tiny_model

HIDDEN, MLP, LAYERS, HEADS, HEAD_SIZE, KV_HEADS = 16, 32, 2, 2, 8, 1
# q and o, k and v, gate and up and down.
DECODER = LAYERS * (2 * HIDDEN**2 + 2 * HIDDEN * KV_HEADS * HEAD_SIZE + 3 * HIDDEN * MLP)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([2, 2, 2], 3), ([1, 0, 0], 1), ([1, -1, 1, -1], 4), ([3, -1], 1.6)],
)
def test_effective_samples(weights: list[float], expected: float) -> None:
    assert effective_samples(np.array(weights, float)) == pytest.approx(expected)


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoder_by_hand(tied: bool) -> None:
    flops = count_flops(tiny_model(tied=tied))
    assert flops == StepFlops(
        per_token=6 * DECODER,
        per_loss_token=6 * VOCAB_SIZE * HIDDEN,
        per_position=6 * LAYERS * HEADS * HEAD_SIZE,
    )
    assert flops is not None
    # Two samples of 10 and 20 tokens, 4 of them with loss.
    assert flops.total(num_tokens=30, num_loss_tokens=4, num_positions=500) == (
        6 * DECODER * 30 + 6 * VOCAB_SIZE * HIDDEN * 4 + 6 * LAYERS * 16 * 500
    )


def test_frozen_matrices_have_no_gradient_of_their_own() -> None:
    model = tiny_model()
    add_adapters(model, LoraConfig(rank=2, target_modules=["q_proj"]), seed=0)
    flops = count_flops(model)
    assert flops is not None
    assert flops.per_token == 4 * DECODER + 6 * LAYERS * 2 * (2 * HIDDEN)
    assert flops.per_loss_token == 4 * VOCAB_SIZE * HIDDEN


def test_no_figure_where_attention_is_not_full() -> None:
    model = tiny_model()
    model.config.layer_types = ["full_attention", "sliding_attention"]
    assert count_flops(model) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peaks(monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0)) == peak
    assert peak_flops(torch.device("cpu")) is None


def test_memory_of_this_process() -> None:
    assert 0.05 < peak_memory_gib(torch.device("cpu")) < 1024
