"""The learning rate is a function of the step; only matrices that are trained decay."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.config import TrainingConfig
from drift_ray.training.optimizer import build_optimizer, learning_rate
from tests.unit.training_cases import tiny_model

SCHEDULES = ("constant", "cosine", "linear")


def rates(num_steps: int, **settings: Any) -> list[float]:
    config = TrainingConfig(learning_rate=1.0, **settings)
    return [learning_rate(step, num_steps, config) for step in range(num_steps)]


def test_constant_after_warmup() -> None:
    assert rates(10, warmup_frac=0.3)[:5] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])
    assert rates(3, warmup_frac=0.0) == [1, 1, 1]


def test_linear_and_cosine_by_hand() -> None:
    assert rates(4, schedule="linear", warmup_frac=0.0) == pytest.approx([1, 3 / 4, 1 / 2, 1 / 4])
    cosine = rates(5, schedule="cosine", warmup_frac=0.4, min_learning_rate_frac=0.2)
    # Two steps of warm-up; then quarters of a half wave, the last of which is not reached.
    half_wave = [0.853553, 0.5, 0.146447]
    assert cosine == pytest.approx([0.5, 1, *(0.2 + 0.8 * left for left in half_wave)], abs=1e-6)


@given(
    schedule=st.sampled_from(SCHEDULES),
    num_steps=st.integers(1, 200),
    warmup_frac=st.floats(0, 1),
    low=st.floats(0, 1),
)
def test_every_schedule_rises_then_falls_and_has_no_dead_step(
    schedule: str, num_steps: int, warmup_frac: float, low: float
) -> None:
    low = 0.0 if schedule == "constant" else low
    found = rates(num_steps, schedule=schedule, warmup_frac=warmup_frac, min_learning_rate_frac=low)
    top = found.index(max(found))
    assert max(found) == pytest.approx(1)
    assert all(a < b for a, b in pairwise(found[: top + 1]))
    assert all(a >= b for a, b in pairwise(found[top:]))
    assert all(rate >= low for rate in found[top:])
    assert min(found) > 0


def test_only_matrices_decay() -> None:
    model = tiny_model()
    matrices, others = build_optimizer(model, TrainingConfig()).param_groups
    assert matrices["weight_decay"] == TrainingConfig().weight_decay
    assert others["weight_decay"] == 0
    norms = {id(p) for name, p in model.named_parameters() if "norm" in name}
    assert {id(p) for p in others["params"]} == norms


def test_what_is_frozen_is_left_alone() -> None:
    model = tiny_model().requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    matrices, others = build_optimizer(model, TrainingConfig()).param_groups
    assert [id(p) for p in matrices["params"]] == [id(model.lm_head.weight)]
    assert others["params"] == []
