"""A training ends after ``patience`` evaluations without improvement, and remembers the best."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.config import EarlyStoppingConfig
from drift_ray.training.early_stop import HeldOutRecord

losses = st.lists(st.floats(0, 4) | st.just(math.nan) | st.just(math.inf), min_size=1, max_size=30)


def follow(values: list[float], config: EarlyStoppingConfig) -> HeldOutRecord:
    record = HeldOutRecord()
    for step, loss in enumerate(values, 1):
        record = record.add(loss, step, config)
        if record.is_over(config):
            break
    return record


@pytest.mark.parametrize(
    ("values", "patience", "min_delta", "best_step", "over"),
    [
        ([3, 2, 1], 2, 0, 3, False),
        ([3, 2, 2, 2], 2, 0, 2, True),
        ([3, 2, 2.5, 1.9, 2], 2, 0, 4, False),
        ([3, 2.95, 2.85], 2, 0.1, 3, False),
        ([3, 2.95, 2.91], 2, 0.1, 1, True),
        ([math.nan, math.nan], 2, 0, 0, True),
        ([math.inf, 1], 2, 0, 2, False),
    ],
)
def test_decisions(
    values: list[float], patience: int, min_delta: float, best_step: int, over: bool
) -> None:
    config = EarlyStoppingConfig(patience=patience, min_delta=min_delta)
    record = follow(values, config)
    assert record.best_step == best_step
    assert record.is_over(config) == over


@given(values=losses, patience=st.integers(1, 4))
def test_the_best_is_the_lowest_seen_and_never_nan(values: list[float], patience: int) -> None:
    config = EarlyStoppingConfig(patience=patience)
    record = follow(values, config)
    seen = values[: record.best_step + record.num_worse]
    finite = [loss for loss in seen if loss < math.inf]
    assert record.best_loss == min(finite, default=math.inf)
    assert record.is_over(config) == (record.num_worse == patience)
    if finite:
        assert values.index(record.best_loss) + 1 == record.best_step
