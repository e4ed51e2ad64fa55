"""Weightings by name, own ones by import path, and the limits on them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.config import WeightingConfig
from drift_ray.errors import ConfigError, DataError
from drift_ray.weighting.groups import Groups
from drift_ray.weighting.importance import importance_weights
from drift_ray.weighting.limits import limit
from drift_ray.weighting.weightings import (
    WEIGHTINGS,
    Rows,
    get_weighting,
    own_code,
    weigh_rows,
)
from tests.unit.weighting_cases import betas, make_rows, row_lists, split_rows


def weigh(method: str, rows: Rows, beta: float = 0.1) -> np.ndarray:
    return weigh_rows(method, rows, np.full(len(rows.groups), beta))


SOME = make_rows([1.0, 0.9, 0.0, -0.1, 0.0, 0.0], list("aaabbb"), [1, 2, 0, 0, 0, 0])


@given(row_lists, betas)
def test_drift_is_the_formula(rows: list[tuple[float, str]], beta: float) -> None:
    made = make_rows(*split_rows(rows))
    expected = importance_weights(made.shaped_return, made.groups, beta=beta)
    assert weigh("drift", made, beta).tolist() == expected.tolist()


@given(row_lists, st.data())
def test_mean_one_or_zero_in_every_group(
    rows: list[tuple[float, str]], data: st.DataObject
) -> None:
    returns, ids = split_rows(rows)
    first = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
    made = make_rows(returns, ids, first)
    assert made.groups.mean(weigh("uniform", made)).tolist() == [1.0] * len(made.groups)
    means = made.groups.mean(weigh("success_only", made))
    assert means == pytest.approx(made.groups.any(made.solved).astype(float))
    assert weigh("success_only", made)[~made.solved].sum() == 0
    advantage = weigh("group_advantage", made)
    assert made.groups.mean(advantage) == pytest.approx(np.zeros(len(made.groups)), abs=1e-10)


def test_success_only_shares_alike_among_successes() -> None:
    assert weigh("success_only", SOME).tolist() == [1.5, 1.5, 0, 0, 0, 0]


@given(row_lists)
def test_group_advantage_is_what_drift_becomes_for_large_beta(
    rows: list[tuple[float, str]],
) -> None:
    made = make_rows(*split_rows(rows))
    beta = 1e7
    first_order = beta * (weigh("drift", made, beta) - 1)
    # The next term is at most (R - mean)²/β, and 1 is subtracted from numbers near 1.
    assert first_order == pytest.approx(weigh("group_advantage", made), abs=1e-2, rel=1e-3)


def test_own_weightings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_weightings.py").write_text(
        "import numpy as np\n"
        "def fast(rows, beta):\n"
        "    return (rows.first_success_turn == 1) * rows.groups.spread(beta)\n"
        "def short(rows, beta):\n    return [1.0]\n"
        "def wrong(rows, beta):\n    return np.full(len(rows.shaped_return), np.nan)\n"
        "number = 7\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert weigh("own_weightings:fast", SOME, 0.5).tolist() == [0.5, 0, 0, 0, 0, 0]
    with pytest.raises(DataError, match=r"own_weightings:short returned shape \(1,\) for 6"):
        weigh("own_weightings:short", SOME)
    with pytest.raises(DataError, match=r"trajectory 0 \(return 1.0\) the weight nan"):
        weigh("own_weightings:wrong", SOME)
    for missing in ("own_weightings:none", "no_such_module:x", "own_weightings:number", ":x"):
        with pytest.raises(ConfigError, match=r"weighting\.method"):
            get_weighting(missing)
    with pytest.raises(ConfigError, match="source of 'math:fsum'"):
        own_code("math:fsum")
    before = own_code("own_weightings:fast")
    assert before
    (tmp_path / "own_weightings.py").write_text("def fast(rows, beta):\n    return 2 * beta\n")
    del sys.modules["own_weightings"]
    import linecache

    linecache.clearcache()
    assert own_code("own_weightings:fast") != before


def test_unknown_names_are_answered_with_what_was_meant() -> None:
    with pytest.raises(ConfigError, match=r"'succes_only'. Did you mean 'success_only'\?"):
        get_weighting("succes_only")
    with pytest.raises(ConfigError, match=r"drift, uniform, success_only"):
        get_weighting("zzz")
    assert all(own_code(name) == "" for name in WEIGHTINGS)


@pytest.mark.parametrize(
    ("settings", "weights", "removed"),
    [
        ({}, [1.2, 0.6, 1.2, 0.5, 1.5, 1.0], {}),
        ({"all_failed": "drop"}, [1.2, 0.6, 1.2, 0, 0, 0], {"all_failed": [0, 3.0]}),
        (
            {"all_failed": "scale", "all_failed_scale": 0.5},
            [1.2, 0.6, 1.2, 0.25, 0.75, 0.5],
            {"all_failed": [0, 1.5]},
        ),
        ({"clip": 1.1}, [1.1, 0.6, 1.1, 0.5, 1.1, 1.0], {"clip": [0.2, 0.4]}),
        (
            {"min_importance_weight": 0.7},
            [1.2, 0, 1.2, 0, 1.5, 1.0],
            {"min_importance_weight": [0.6, 0.5]},
        ),
        (
            {"all_failed": "scale", "clip": 1.0, "min_importance_weight": 0.12},
            [1.0, 0.6, 1.0, 0, 0.15, 0],
            {"all_failed": [0, 2.7], "clip": [0.4, 0], "min_importance_weight": [0, 0.15]},
        ),
    ],
)
def test_limits_and_the_mass_they_take(
    settings: dict[str, object], weights: list[float], removed: dict[str, list[float]]
) -> None:
    found = limit(np.array([1.2, 0.6, 1.2, 0.5, 1.5, 1.0]), SOME, WeightingConfig(**settings))  # type: ignore[arg-type]
    assert found.importance_weight == pytest.approx(weights)
    expected = {"all_failed": [0, 0], "clip": [0, 0], "min_importance_weight": [0, 0]} | removed
    assert {k: v.tolist() for k, v in found.removed.items()} == {
        k: pytest.approx(v) for k, v in expected.items()
    }


def test_signed_weights_are_limited_by_their_size() -> None:
    rows = make_rows([0, 0, 0], [0, 0, 0], [1, 0, 0])
    config = WeightingConfig(method="group_advantage", clip=0.5, min_importance_weight=0.2)
    found = limit(np.array([0.9, -0.8, -0.1]), rows, config)
    assert found.importance_weight.tolist() == [0.5, -0.5, 0.0]
    assert found.removed["clip"] == pytest.approx([0.7])


@given(row_lists, st.floats(0.1, 3), st.floats(0, 0.1))
def test_what_is_left_and_what_is_removed_are_the_whole(
    rows: list[tuple[float, str]], clip: float, least: float
) -> None:
    made = make_rows(*split_rows(rows), first_success_turn=[1] + [0] * (len(rows) - 1))
    config = WeightingConfig(clip=clip, min_importance_weight=least, all_failed="scale")
    found = limit(weigh("drift", made), made, config)
    total = made.groups.sum(found.importance_weight) + sum(found.removed.values())
    assert total == pytest.approx(made.groups.sizes)
    assert found.importance_weight.max() <= clip


def test_nothing_to_weigh() -> None:
    nothing = Rows(
        groups=Groups.of([]), shaped_return=np.array([]), first_success_turn=np.array([], np.int32)
    )
    for method in WEIGHTINGS:
        weights = limit(weigh(method, nothing), nothing, WeightingConfig()).importance_weight
        assert weights.tolist() == []
