"""Importance weights: the invariants of w = exp(R/β) / mean exp(R/β)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.errors import DataError
from drift_ray.weighting.importance import drop_all_failed, ess, group_codes, importance_weights

betas = st.floats(1e-3, 1e3)
rows = st.lists(
    st.tuples(st.floats(-100, 100), st.sampled_from(["a", "b", "ü", ""])), min_size=1, max_size=40
)


def split(rows: list[tuple[float, str]]) -> tuple[np.ndarray, np.ndarray]:
    returns, groups = zip(*rows, strict=True)
    return np.array(returns), np.array(groups)


@given(rows, betas)
def test_mean_one_in_every_group(rows: list[tuple[float, str]], beta: float) -> None:
    returns, groups = split(rows)
    weights = importance_weights(returns, groups, beta=beta)
    assert np.all(np.isfinite(weights) & (weights >= 0))
    for group in set(groups):
        assert weights[groups == group].mean() == pytest.approx(1.0, rel=1e-14)


@given(rows, betas)
def test_equals_the_formula_in_each_group(rows: list[tuple[float, str]], beta: float) -> None:
    returns, groups = split(rows)
    weights = importance_weights(returns, groups, beta=beta)
    for group in set(groups):
        mine = returns[groups == group].astype(np.longdouble)
        likelihood = np.exp((mine - mine.max()) / beta)
        expected = (likelihood / likelihood.mean()).astype(np.float64)
        # The exponent is rounded to double before exp: relative error |exponent|·2⁻⁵² in sum.
        assert weights[groups == group] == pytest.approx(expected, rel=1e-10, abs=1e-300)


@given(rows, betas, st.randoms())
def test_order_does_not_matter(rows: list[tuple[float, str]], beta: float, random: object) -> None:
    returns, groups = split(rows)
    order = np.array(sorted(range(len(rows)), key=lambda _: random.random()))  # type: ignore[attr-defined]
    weights = importance_weights(returns, groups, beta=beta)
    shuffled = importance_weights(returns[order], groups[order], beta=beta)
    assert shuffled == pytest.approx(weights[order], rel=1e-12)


@given(st.lists(st.integers(-8, 8), min_size=1, max_size=16), st.integers(-1000, 1000), betas)
def test_a_constant_added_to_a_group_changes_nothing(
    returns: list[int], constant: int, beta: float
) -> None:
    # Multiples of 1/8: the sums are exact, so the weights are the very same.
    base = np.array(returns) / 8
    groups = np.zeros(len(base), dtype=int)
    shifted = importance_weights(base + constant / 8, groups, beta=beta)
    assert np.array_equal(shifted, importance_weights(base, groups, beta=beta))


@given(rows, betas)
def test_a_better_return_never_weighs_less(rows: list[tuple[float, str]], beta: float) -> None:
    returns, groups = split(rows)
    weights = importance_weights(returns, groups, beta=beta)
    for group in set(groups):
        ranked = weights[groups == group][np.argsort(returns[groups == group])]
        assert np.all(np.diff(ranked) >= 0)


def test_limits_of_beta() -> None:
    returns, groups = np.array([1.0, 0.9, 0.0, 0.0]), np.array([0, 0, 0, 0])
    assert importance_weights(returns, groups, beta=1e9) == pytest.approx(np.ones(4), rel=1e-8)
    assert importance_weights(returns, groups, beta=1e-3) == pytest.approx(
        [4.0, 0, 0, 0], abs=1e-40
    )
    tiny = importance_weights(returns * 1e300, groups, beta=1e-300)
    assert tiny.tolist() == [4.0, 0.0, 0.0, 0.0]


def test_groups_of_one_and_no_rows() -> None:
    ones = importance_weights(np.array([-5.0, 3.0]), np.array(["a", "b"]), beta=0.1)
    assert ones.tolist() == [1.0, 1.0]
    assert importance_weights(np.array([]), [], beta=0.1).tolist() == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_return_that_is_no_number_is_named(value: float) -> None:
    with pytest.raises(DataError, match=r"1 of 3 shaped returns.*row 1 \(group p7\): (nan|-?inf)"):
        importance_weights(np.array([0.0, value, 1.0]), np.array(["p1", "p7", "p7"]), beta=0.1)


@pytest.mark.parametrize("beta", [0.0, -0.1, np.nan, np.inf])
def test_beta_must_be_positive_and_finite(beta: float) -> None:
    with pytest.raises(ValueError, match="beta"):
        importance_weights(np.array([0.0]), np.array(["a"]), beta=beta)


@given(rows, betas)
def test_ess_lies_between_one_and_the_group_size(
    rows: list[tuple[float, str]], beta: float
) -> None:
    returns, groups = split(rows)
    weights = importance_weights(returns, groups, beta=beta)
    codes, num_groups = group_codes(groups)
    sizes = np.bincount(codes)
    size = ess(weights, groups)
    assert size.shape == (num_groups,)
    assert np.all(size >= 1 - 1e-9)
    assert np.all(size <= sizes * (1 + 1e-9))
    assert ess(np.ones(len(groups)), groups) == pytest.approx(sizes.astype(float))


def test_ess_examples() -> None:
    groups = ["b", "a", "b", "a", "c"]
    assert ess(np.array([2.0, 1.0, 0.0, 1.0, 0.0]), groups).tolist() == [1.0, 2.0, 0.0]


def test_groups_are_numbered_by_first_appearance() -> None:
    codes, num_groups = group_codes(np.array(["b", "a", "b", "c"], dtype=object))
    assert codes.tolist() == [0, 1, 0, 2]
    assert num_groups == 3
    assert group_codes([5, 3, 5])[0].tolist() == [0, 1, 0]


def test_drop_all_failed_takes_whole_groups_only() -> None:
    groups = ["a", "b", "a", "b"]
    weights, solved = np.array([1.5, 0.5, 0.5, 1.5]), np.array([True, False, False, False])
    assert drop_all_failed(weights, groups, solved).tolist() == [1.5, 0.0, 0.5, 0.0]
