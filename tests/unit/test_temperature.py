"""β by meaning: what is asked for is what the weights then have."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from drift_ray.weighting.groups import Groups
from drift_ray.weighting.importance import ess, importance_weights, kl_divergence
from drift_ray.weighting.temperature import BETA_RANGE, solve_beta

# Returns of real runs: a few turns, penalties, many ties.
group_returns = st.lists(st.integers(-10, 10).map(lambda k: k / 10), min_size=2, max_size=16)
some_groups = st.lists(group_returns, min_size=1, max_size=5)


def flat(groups: list[list[float]]) -> tuple[np.ndarray, Groups]:
    ids = np.repeat(np.arange(len(groups)), [len(each) for each in groups])
    return np.concatenate([np.array(each) for each in groups]), Groups.of(ids)


def measured(returns: np.ndarray, groups: Groups, beta: np.ndarray, measure: str) -> np.ndarray:
    weights = importance_weights(returns, groups, beta=beta)
    if measure == "kl":
        return kl_divergence(weights, groups)
    return ess(weights, groups) / groups.sizes


@given(some_groups, st.floats(0.05, 0.95))
def test_ess_frac_of_each_group(groups: list[list[float]], target: float) -> None:
    returns, numbered = flat(groups)
    beta = solve_beta(returns, numbered, measure="ess_frac", target=target, per_group=True)
    found = measured(returns, numbered, beta, "ess_frac")
    ties = np.array([each.count(max(each)) / len(each) for each in groups])
    reachable = ties < target - 1e-3
    assert found[reachable] == pytest.approx(target, abs=1e-9)
    assert np.all(beta[ties > target] == pytest.approx(BETA_RANGE[0]))


@given(some_groups, st.floats(0.01, 2.5))
def test_kl_of_each_group(groups: list[list[float]], target: float) -> None:
    returns, numbered = flat(groups)
    beta = solve_beta(returns, numbered, measure="kl", target=target, per_group=True)
    found = measured(returns, numbered, beta, "kl")
    limit = np.array([np.log(len(each) / each.count(max(each))) for each in groups])
    assert found[limit > target + 1e-3] == pytest.approx(target, abs=1e-9)
    assert np.all(beta[limit < target - 1e-3] == pytest.approx(BETA_RANGE[0]))


@given(some_groups, st.sampled_from(["ess_frac", "kl"]), st.floats(0.05, 0.95))
def test_the_mean_over_the_run(groups: list[list[float]], measure: str, target: float) -> None:
    returns, numbered = flat(groups)
    beta = solve_beta(returns, numbered, measure=measure, target=target, per_group=False)
    assert beta.shape == (len(groups),)
    assert len(set(beta.tolist())) == 1
    at_ends = [
        measured(returns, numbered, np.full(len(groups), end), measure).mean() for end in BETA_RANGE
    ]
    assume(min(at_ends) + 1e-6 < target < max(at_ends) - 1e-6)
    found = measured(returns, numbered, beta, measure).mean()
    assert found == pytest.approx(target, abs=1e-8)


@given(group_returns, st.floats(0.05, 1.5))
def test_kl_is_the_minimum_of_the_dual(returns: list[float], epsilon: float) -> None:
    values, groups = flat([returns])
    (beta,) = solve_beta(values, groups, measure="kl", target=epsilon, per_group=True)
    assume(beta > BETA_RANGE[0] * 1.1)

    def dual(temperature: float) -> float:
        greatest = values.max()
        mean = np.mean(np.exp((values - greatest) / temperature))
        return float(temperature * epsilon + greatest + temperature * np.log(mean))

    assert dual(beta) <= min(dual(beta * 1.05), dual(beta / 1.05)) + 1e-12


@given(group_returns, st.integers(-100, 100), st.sampled_from(["ess_frac", "kl"]))
def test_a_constant_changes_nothing_and_a_factor_scales(
    returns: list[float], constant: int, measure: str
) -> None:
    values, groups = flat([returns])
    assume(values.max() - np.sort(values)[-2] > 0.05)

    def solved(values: np.ndarray) -> float:
        return float(solve_beta(values, groups, measure=measure, target=0.8, per_group=True)[0])  # type: ignore[arg-type]

    beta = solved(values)
    assume(BETA_RANGE[0] * 1.01 < beta < BETA_RANGE[1] / 10)
    assert solved(values + constant) == pytest.approx(beta, rel=1e-6)
    assert solved(values * 4) == pytest.approx(4 * beta, rel=1e-9)


def test_groups_are_solved_alone_or_together_alike() -> None:
    rng = np.random.default_rng(0)
    groups = [rng.normal(size=size).tolist() for size in (2, 5, 16)]
    returns, numbered = flat(groups)
    together = solve_beta(returns, numbered, measure="kl", target=0.3, per_group=True)
    alone = [
        solve_beta(*flat([each]), measure="kl", target=0.3, per_group=True)[0] for each in groups
    ]
    assert together.tolist() == alone


def test_no_groups() -> None:
    nothing = solve_beta(np.array([]), Groups.of([]), measure="kl", target=1.0, per_group=True)
    assert nothing.tolist() == []
