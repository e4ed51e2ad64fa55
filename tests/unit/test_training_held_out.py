"""Held-out samples are measured alike on any ranks, and end a training that learns them no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from drift_ray.config import EarlyStoppingConfig, LoraConfig, TrainingConfig
from drift_ray.training.data import TrainingData
from drift_ray.training.learner import StepMetrics
from drift_ray.training.loop import TrainingResult, train
from drift_ray.training.loss import WeightedNLL
from drift_ray.training.passes import evaluate
from tests.unit.training_cases import (
    gradient,
    policy_for,
    random_data,
    saving_to,
)

# Random tokens: what is learned of some says nothing about others.
CONFIG = TrainingConfig(
    batch_size=6,
    num_epochs=10,
    learning_rate=1e-2,
    micro_batch_tokens=60,
    checkpoint_every_steps=2,
    eval_every_steps=3,
    held_out_frac=0.5,
    early_stopping=EarlyStoppingConfig(patience=2),
)


@pytest.fixture
def data(tmp_path: Path) -> TrainingData:
    return random_data(tmp_path / "run")  # 24 samples: 4 steps an epoch


@pytest.fixture
def held_out(tmp_path: Path) -> TrainingData:
    return random_data(tmp_path / "other", rows=5, seed=1)


def run(
    data: TrainingData,
    held_out: TrainingData,
    config: TrainingConfig = CONFIG,
    *,
    checkpoints: Path | None = None,
    resume_from: Path | None = None,
) -> tuple[PreTrainedModel, list[StepMetrics], TrainingResult]:
    model, steps = policy_for(config), []

    result = train(
        model,
        data,
        config,
        held_out=held_out,
        seed=0,
        digest="abc",
        resume_from=resume_from,
        on_step=steps.append,
        on_checkpoint=saving_to(checkpoints),
    )
    return model, steps, result


def test_the_held_out_loss_is_the_loss(held_out: TrainingData) -> None:
    model = policy_for(CONFIG)
    _, sums = gradient(held_out, CONFIG, np.arange(len(held_out)))
    loss = evaluate(WeightedNLL(model), held_out, CONFIG)
    assert loss == pytest.approx(sums.loss / len(held_out), rel=1e-6)
    assert all(p.grad is None for p in model.parameters())


def test_it_is_measured_now_and_then_and_at_the_end(
    data: TrainingData, held_out: TrainingData
) -> None:
    config = CONFIG.model_copy(update={"early_stopping": None, "num_epochs": 2})
    model, steps, result = run(data, held_out, config)
    assert [m.step for m in steps if m.held_out_loss is not None] == [2, 5, 7]
    assert steps[-1].held_out_loss == evaluate(WeightedNLL(model), held_out, config)
    assert result.held_out.best_step == 0
    # Measuring changes nothing.
    alone = policy_for(config)
    train(alone, data, config, seed=0, digest="abc")
    torch.testing.assert_close(model.state_dict(), alone.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_a_training_stops_and_ends_at_its_best(
    data: TrainingData, held_out: TrainingData, lora: LoraConfig | None
) -> None:
    config = CONFIG.model_copy(update={"lora": lora})
    model, steps, result = run(data, held_out, config)
    measured = {m.step + 1: m.held_out_loss for m in steps if m.held_out_loss is not None}
    best = min(measured, key=lambda step: measured[step])
    assert result.held_out.best_step == best
    assert result.num_steps == len(steps) == best + 2 * config.eval_every_steps
    assert result.num_steps < steps[-1].num_steps
    assert evaluate(WeightedNLL(model), held_out, config) == measured[best]


def test_a_resumed_training_decides_alike(
    data: TrainingData, held_out: TrainingData, tmp_path: Path
) -> None:
    model, steps, result = run(data, held_out, checkpoints=tmp_path)
    saved = sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    for step in (*saved[:3], saved[-1]):
        again, rest, other = run(data, held_out, resume_from=tmp_path / str(step))
        assert [m.step for m in rest] == list(range(step, len(steps)))
        assert other.held_out == result.held_out
        assert other.num_steps == result.num_steps
        torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert rest == []  # the last checkpoint knows that it is over
