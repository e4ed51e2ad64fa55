"""Intervals clustered by prompt."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.evaluation.intervals import (
    clustered_interval,
    difference_interval,
    ratio_interval,
)

samples = st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=1, max_size=60)


def plain_wilson(successes: int, n: int) -> tuple[float, float]:
    z, p = 1.959963984540054, successes / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


@given(samples)
def test_interval_contains_its_estimate(rows: list[tuple[bool, int]]) -> None:
    success, clusters = (np.array(column) for column in zip(*rows, strict=True))
    interval = clustered_interval(success, clusters)
    assert interval.estimate == pytest.approx(success.mean())
    assert 0.0 <= interval.low <= interval.estimate <= interval.high <= 1.0
    assert interval.high - interval.low > 0.01  # never certain, even at 0 and 1


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_one_sample_a_prompt_is_the_plain_wilson_interval(success: list[bool]) -> None:
    interval = clustered_interval(np.array(success), np.arange(len(success)))
    low, high = plain_wilson(sum(success), len(success))
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-12)


@given(samples, st.randoms())
def test_interval_ignores_order_and_names(rows: list[tuple[bool, int]], random: object) -> None:
    success, clusters = (np.array(column) for column in zip(*rows, strict=True))
    order = np.array(sorted(range(len(rows)), key=lambda _: random.random()))  # type: ignore[attr-defined]
    names = np.array([f"p{cluster}" for cluster in clusters])
    one = clustered_interval(success, clusters)
    other = clustered_interval(success[order], names[order])
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=1e-9)


def test_copies_of_a_sample_add_no_certainty() -> None:
    success = np.arange(100) % 3 == 0
    once = clustered_interval(success, np.arange(100))
    copied = clustered_interval(np.repeat(success, 8), np.repeat(np.arange(100), 8))
    naive = clustered_interval(np.repeat(success, 8), np.arange(800))
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=1e-3)
    assert naive.high - naive.low < 0.5 * (copied.high - copied.low)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(60), 4)
    ability = rng.beta(0.2, 1.8, size=(1000, 60))  # mean 0.1, samples of a prompt strongly alike
    draws = rng.random((1000, 240)) < np.repeat(ability, 4, axis=1)
    intervals = [clustered_interval(draw, prompts) for draw in draws]
    covered = np.mean([interval.low <= 0.1 <= interval.high for interval in intervals])
    assert 0.92 <= covered <= 0.98


ratios = st.lists(
    st.tuples(st.integers(0, 500), st.booleans(), st.integers(0, 5)), min_size=1, max_size=40
)


@given(ratios)
def test_a_ratio_lies_within_its_interval(rows: list[tuple[int, bool, int]]) -> None:
    parts, wholes, clusters = (np.array(column) for column in zip(*rows, strict=True))
    interval = ratio_interval(parts, wholes, clusters)
    if len(set(clusters)) < 2 or not parts.sum() or not wholes.sum():
        assert interval is None
        return
    assert interval is not None
    assert interval.estimate == pytest.approx(parts.sum() / wholes.sum())
    assert 0.0 < interval.low <= interval.estimate <= interval.high


def test_copies_of_a_sample_leave_the_interval_of_a_ratio_as_it_is() -> None:
    tokens, solved = np.arange(1, 41), np.arange(40) % 3 == 0
    once = ratio_interval(tokens, solved, np.arange(40))
    copied = ratio_interval(*(np.repeat(each, 4) for each in (tokens, solved, np.arange(40))))
    assert once is not None
    assert copied is not None
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))


def test_the_interval_of_a_ratio_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    ability = rng.beta(2, 2, size=(1000, 80, 1))  # mean 1/2
    solved = rng.random((1000, 80, 4)) < ability
    tokens = np.where(solved, 10, 40) * rng.integers(1, 4, (1000, 80, 4))  # mean 2 * 25
    prompts = np.repeat(np.arange(80), 4)
    found = [
        ratio_interval(t.ravel(), s.ravel(), prompts) for t, s in zip(tokens, solved, strict=True)
    ]
    covered = np.mean([each is not None and each.low <= 100 <= each.high for each in found])
    assert 0.92 <= covered <= 0.98


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60), st.sampled_from([1.0, 0.5, 0.125]))
def test_a_difference_lies_within_its_interval(differences: list[float], smallest: float) -> None:
    interval = difference_interval(differences, smallest=smallest)
    assert interval.estimate == pytest.approx(np.mean(differences))
    assert -1.0 <= interval.low <= interval.estimate <= interval.high <= 1.0
    assert interval.low < interval.high
    other = difference_interval([-each for each in differences], smallest=smallest)
    assert (other.low, other.high) == pytest.approx((-interval.high, -interval.low), abs=1e-12)


def test_single_samples_have_the_interval_of_bonett_and_price() -> None:
    won, lost, n, z = 9, 4, 50, 1.959963984540054
    interval = difference_interval([1.0] * won + [-1.0] * lost + [0.0] * (n - won - lost))
    p, q = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    half = z * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    assert (interval.low, interval.high) == pytest.approx((p - q - half, p - q + half))


@pytest.mark.parametrize(("num_samples", "num_prompts"), [(1, 60), (4, 60), (4, 20), (16, 40)])
def test_the_interval_of_a_difference_covers_the_truth_about_as_often_as_it_says(
    num_samples: int, num_prompts: int
) -> None:
    rng = np.random.default_rng(2)
    shape = (1000, num_prompts)
    before = rng.beta(0.4, 0.6, size=shape)  # mean 0.4
    after = before + (1 - before) * rng.beta(0.5, 1.5, size=shape)  # mean 0.4 + 0.6 / 4
    draws = rng.binomial(num_samples, after) - rng.binomial(num_samples, before)
    found = [difference_interval(row / num_samples, smallest=1 / num_samples) for row in draws]
    covered = np.mean([each.low <= 0.15 <= each.high for each in found])
    assert 0.92 <= covered <= 0.98
