"""Importance weights: the invariants of w = exp(R/β) / mean exp(R/β)."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.errors import DataError
from drift_ray.weighting.groups import Groups
from drift_ray.weighting.importance import ess, importance_weights, kl_divergence
from tests.unit.weighting_cases import betas, row_lists, split_rows


def weigh(returns: np.ndarray, ids: np.ndarray, beta: float) -> np.ndarray:
    return importance_weights(returns, Groups.of(ids), beta=beta)


@given(row_lists, betas)
def test_mean_one_in_every_group(rows: list[tuple[float, str]], beta: float) -> None:
    returns, groups = split_rows(rows)
    weights = weigh(returns, groups, beta)
    assert np.all(np.isfinite(weights) & (weights >= 0))
    for group in set(groups):
        assert weights[groups == group].mean() == pytest.approx(1.0, rel=1e-14)


@given(row_lists, betas)
def test_equals_the_formula_in_each_group(rows: list[tuple[float, str]], beta: float) -> None:
    returns, groups = split_rows(rows)
    weights = weigh(returns, groups, beta)
    for group in set(groups):
        mine = returns[groups == group].astype(np.longdouble)
        likelihood = np.exp((mine - mine.max()) / beta)
        expected = (likelihood / likelihood.mean()).astype(np.float64)
        # The exponent is rounded to double before exp: relative error |exponent|·2⁻⁵² in sum.
        assert weights[groups == group] == pytest.approx(expected, rel=1e-10, abs=1e-300)


@given(row_lists, betas, st.randoms(use_true_random=False))
def test_order_does_not_matter(
    rows: list[tuple[float, str]], beta: float, order: random.Random
) -> None:
    returns, groups = split_rows(rows)
    shuffle = np.array(sorted(range(len(rows)), key=lambda _: order.random()))
    shuffled = weigh(returns[shuffle], groups[shuffle], beta)
    assert shuffled == pytest.approx(weigh(returns, groups, beta)[shuffle], rel=1e-12)


@given(st.lists(st.integers(-8, 8), min_size=1, max_size=16), st.integers(-1000, 1000), betas)
def test_a_constant_added_to_a_group_changes_nothing(
    returns: list[int], constant: int, beta: float
) -> None:
    # Multiples of 1/8: the sums are exact, so the weights are the very same.
    base = np.array(returns) / 8
    groups = np.zeros(len(base), dtype=int)
    shifted = weigh(base + constant / 8, groups, beta)
    assert np.array_equal(shifted, weigh(base, groups, beta))


@given(row_lists, betas)
def test_a_better_return_never_weighs_less(rows: list[tuple[float, str]], beta: float) -> None:
    returns, groups = split_rows(rows)
    weights = weigh(returns, groups, beta)
    for group in set(groups):
        ranked = weights[groups == group][np.argsort(returns[groups == group])]
        assert np.all(np.diff(ranked) >= 0)


@given(row_lists)
def test_a_large_beta_weighs_all_alike(rows: list[tuple[float, str]]) -> None:
    returns, groups = split_rows(rows)
    assert weigh(returns, groups, 1e15) == pytest.approx(np.ones(len(rows)), rel=1e-12)


@given(st.lists(st.tuples(st.integers(-50, 50), st.sampled_from("ab")), min_size=1, max_size=30))
def test_a_small_beta_shares_the_weight_among_the_best(rows: list[tuple[int, str]]) -> None:
    returns, groups = split_rows(rows)
    weights = weigh(returns, groups, 1e-3)
    for group in set(groups):
        mine = returns[groups == group]
        best = mine == mine.max()
        assert weights[groups == group] == pytest.approx(best * len(mine) / best.sum(), abs=1e-12)


def test_returns_and_beta_of_any_size() -> None:
    tiny = weigh(np.array([1.0, 0.9, 0.0, 0.0]) * 1e300, np.zeros(4), 1e-300)
    assert tiny.tolist() == [4.0, 0.0, 0.0, 0.0]


def test_each_group_may_have_its_own_beta() -> None:
    returns, groups = np.array([1.0, 0.0, 1.0, 0.0]), Groups.of(["a", "a", "b", "b"])
    weights = importance_weights(returns, groups, beta=np.array([0.1, 0.5]))
    assert weights[:2] == pytest.approx(weigh(returns[:2], np.zeros(2), 0.1), rel=1e-14)
    assert weights[2:] == pytest.approx(weigh(returns[2:], np.zeros(2), 0.5), rel=1e-14)


def test_groups_of_one_and_no_rows() -> None:
    assert weigh(np.array([-5.0, 3.0]), np.array(["a", "b"]), 0.1).tolist() == [1.0, 1.0]
    assert weigh(np.array([]), np.array([]), 0.1).tolist() == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_return_that_is_no_number_is_named(value: float) -> None:
    with pytest.raises(DataError, match=r"1 of 3 returns .*row 1: (nan|-?inf)"):
        weigh(np.array([0.0, value, 1.0]), np.array(["p1", "p7", "p7"]), 0.1)


@pytest.mark.parametrize("beta", [0.0, -0.1, np.nan, np.inf, np.array([0.1, 0.0])])
def test_beta_must_be_positive_and_finite(beta: float) -> None:
    with pytest.raises(ValueError, match="beta"):
        weigh(np.array([0.0, 1.0]), np.array(["a", "b"]), beta)


@given(row_lists, betas)
def test_ess_and_kl_lie_between_their_bounds(rows: list[tuple[float, str]], beta: float) -> None:
    returns, ids = split_rows(rows)
    groups = Groups.of(ids)
    weights = importance_weights(returns, groups, beta=beta)
    size, kl = ess(weights, groups), kl_divergence(weights, groups)
    assert size.shape == kl.shape == (len(groups),)
    assert np.all((size >= 1 - 1e-9) & (size <= groups.sizes * (1 + 1e-9)))
    assert np.all((kl >= 0) & (kl <= np.log(groups.sizes) + 1e-12))
    # Rényi entropies fall with their order: log(G/ESS) is the one of order 2, KL of order 1.
    assert np.all(kl <= np.log(groups.sizes / size) + 1e-9)


@given(row_lists)
def test_ess_of_equal_weights_is_the_group_size(rows: list[tuple[float, str]]) -> None:
    groups = Groups.of(split_rows(rows)[1])
    for scale in (1.0, 1e-200, -3.0):
        assert ess(np.full(len(rows), scale), groups) == pytest.approx(groups.sizes)


def test_ess_and_kl_examples() -> None:
    groups = Groups.of(["b", "a", "b", "a", "c"])
    weights = np.array([2.0, 1.0, 0.0, 1.0, 0.0])
    assert ess(weights, groups).tolist() == [1.0, 2.0, 0.0]
    assert kl_divergence(weights, groups) == pytest.approx([np.log(2), 0.0, 0.0])
    assert kl_divergence(7 * weights, groups) == pytest.approx([np.log(2), 0.0, 0.0])
    assert ess(np.array([1.0, -1.0]), Groups.of([0, 0])).tolist() == [2.0]
