"""Where π* can be written down, the project's own weights and loss converge to it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from drift_ray.weighting.part import return_table

if TYPE_CHECKING:
    from types import ModuleType

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
LARGE = 1 << 17


@pytest.fixture
def closed_form(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _closed_form

    return _closed_form


@cache
def trained(
    closed_form: ModuleType, num_samples: int, *loss: str, group_size: int | None = None
) -> np.ndarray:
    """log π_θ of every trajectory."""
    problem = closed_form.make_problem()
    rng = np.random.default_rng(0)
    weight = closed_form.sample_weights(problem, num_samples, rng, group_size)
    return closed_form.fit(problem, weight, *loss)


def kl_to_optimum(closed_form: ModuleType, num_samples: int, *loss: str, **how: int) -> float:
    problem = closed_form.make_problem()
    log_prob = trained(closed_form, num_samples, *loss, **how)
    return float(problem.divergence(log_prob, problem.optimum()))


def test_the_problem_is_whole(closed_form: ModuleType) -> None:
    problem = closed_form.make_problem()
    for log_prob in (problem.log_prob(problem.ref_logits), problem.optimum()):
        mass = np.bincount(problem.prompt, weights=np.exp(log_prob))
        np.testing.assert_allclose(mass, 1.0, rtol=1e-12)
    returns = return_table(problem.table, closed_form.WEIGHTING)["shaped_return"].to_numpy()
    np.testing.assert_allclose(returns, problem.returns(), atol=1e-12)
    # Some are repeated, some unparsed, some late, and some all of it: nothing is trivial.
    assert len(np.unique(returns.round(9))) >= 10


def test_all_turns_summed_converge_to_the_optimum(closed_form: ModuleType) -> None:
    sizes = np.array([1 << 13, 1 << 15, LARGE])
    divergence = np.array([kl_to_optimum(closed_form, n, "all", "sum") for n in sizes])
    slope = np.polyfit(np.log(sizes), np.log(divergence), 1)[0]
    assert slope == pytest.approx(-1.0, abs=0.2)
    assert divergence[-1] < 1e-3
    # Not only the slope: the variance is the one of weighted samples.
    np.testing.assert_allclose(divergence * sizes, closed_form.make_problem().rate(), rtol=0.5)


@pytest.mark.parametrize("loss", [("all", "mean"), ("last", "sum"), ("last", "mean")], ids=" ".join)
def test_other_losses_converge_elsewhere(closed_form: ModuleType, loss: tuple[str, str]) -> None:
    problem = closed_form.make_problem()
    expected = problem.divergence(problem.limit(*loss), problem.optimum())
    assert expected > 0.04
    assert kl_to_optimum(closed_form, LARGE, *loss) == pytest.approx(expected, rel=0.1)


def test_the_last_turn_alone_fits_success_at_once(closed_form: ModuleType) -> None:
    """Whatever β is: before the last turn only successes carry loss."""
    problem = closed_form.make_problem()
    mass = np.exp(trained(closed_form, LARGE, "last", "mean"))
    at_once = problem.table["first_success_turn"].fill_null(0).to_numpy() == 1
    assert mass[at_once].sum() / problem.num_prompts > 0.995
    assert np.exp(problem.optimum())[at_once].sum() / problem.num_prompts < 0.5


def test_small_groups_keep_their_bias(closed_form: ModuleType) -> None:
    in_groups = kl_to_optimum(closed_form, LARGE, "all", "sum", group_size=16)
    assert in_groups > 10 * kl_to_optimum(closed_form, LARGE, "all", "sum")
