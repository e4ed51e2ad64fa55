"""Two models on the same prompts: differences, intervals, p-values, and refusals."""

from __future__ import annotations

import json
from itertools import product
from math import comb
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.errors import TaskError
from drift_ray.evaluation.comparison import (
    MCNEMAR,
    SIGN_FLIP,
    Outcomes,
    compare,
    mcnemar_p_value,
    sign_flip_p_value,
)
from drift_ray.evaluation.metrics import success_metrics

MAX_TURNS = 3
Samples = list[list[int | None]]
"""First success turns of the samples of each prompt."""


def outcomes(
    samples: Samples, name: str = "m", *, failed: tuple[str, ...] = (), gold: str = "1"
) -> Outcomes:
    rows = [(f"p{i:03d}", turn) for i, turns in enumerate(samples) for turn in turns]
    table = pa.table(
        {
            "prompt_id": pa.array([prompt for prompt, _ in rows], pa.string()),
            "question": pa.array([f"{prompt}?" for prompt, _ in rows], pa.string()),
            "gold": pa.array([gold for _ in rows], pa.string()),
            "first_success_turn": pa.array([turn for _, turn in rows], pa.int32()),
        }
    )
    return Outcomes.of(table, name=name, max_turns=MAX_TURNS, failed_prompt_ids=failed)


turns = st.sampled_from([None, 1, 2, 3])


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Samples, Samples]:
    """Samples of two models, one or several a prompt."""
    num_prompts = draw(st.integers(1, 12))
    most = draw(st.integers(1, 4))
    samples = st.lists(
        st.lists(turns, min_size=1, max_size=most), min_size=num_prompts, max_size=num_prompts
    )
    return draw(samples), draw(samples)


@given(pairs())
def test_to_swap_the_models_turns_every_sign(pair: tuple[Samples, Samples]) -> None:
    one, other = (outcomes(each) for each in pair)
    there, back = compare(one, other), compare(other, one)
    assert there["test"] == back["test"]
    for a, b in zip(there["success_at"], back["success_at"], strict=True):
        assert a["difference"] == pytest.approx(-b["difference"])
        assert (a["low"], a["high"]) == pytest.approx((-b["high"], -b["low"]))
        assert a["p_value"] == b["p_value"]
        assert (a["won"], a["lost"]) == (b["lost"], b["won"])
        assert (a["baseline"], a["candidate"]) == (b["candidate"], b["baseline"])


@given(pairs())
def test_an_estimate_lies_within_its_interval_and_p_within_its_range(
    pair: tuple[Samples, Samples],
) -> None:
    result = compare(*(outcomes(each) for each in pair))
    is_single = all(len(turns) == 1 for samples in pair for turns in samples)
    assert result["test"] == (MCNEMAR if is_single else SIGN_FLIP)
    for row in result["success_at"]:
        assert -1.0 <= row["low"] <= row["difference"] <= row["high"] <= 1.0
        assert row["low"] < row["high"]
        assert row["difference"] == pytest.approx(row["candidate"] - row["baseline"])
        assert 0.0 < row["p_value"] <= 1.0
        assert set(row["won"]).isdisjoint(row["lost"])
        assert (len(row["won"]), len(row["lost"])) == (row["num_won"], row["num_lost"])
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@given(pairs())
def test_a_model_does_not_differ_from_itself(pair: tuple[Samples, Samples]) -> None:
    same = outcomes(pair[0])
    for row in compare(same, same)["success_at"]:
        assert row["difference"] == 0.0
        assert row["p_value"] == 1.0
        assert row["won"] == row["lost"] == []


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(won: int, lost: int) -> None:
    n = won + lost
    weights = [comb(n, k) for k in range(n + 1)]
    # The textbook form: all outcomes that are no likelier than the one observed.
    expected = sum(each for each in weights if each <= weights[won]) / 2**n
    assert mcnemar_p_value(won, lost) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_of_very_many_prompts_is_not_0() -> None:
    assert 0.0 < mcnemar_p_value(20_000, 0) < 1e-300
    assert mcnemar_p_value(5_000, 5_000) == 1.0
    assert mcnemar_p_value(9, 1) == pytest.approx(22 / 1024)


@pytest.mark.parametrize(("won", "lost"), [(9, 1), (6, 4), (3, 0), (12, 2)])
def test_of_single_samples_the_permutation_test_is_mcnemars(won: int, lost: int) -> None:
    differences = [1.0] * won + [-1.0] * lost + [0.0] * 5
    assert sign_flip_p_value(differences) == pytest.approx(mcnemar_p_value(won, lost), abs=0.015)


@given(st.lists(st.sampled_from([-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 1]), max_size=8))
def test_random_signs_come_close_to_all_signs(differences: list[float]) -> None:
    values = np.array(differences)
    signs = np.array(list(product([-1, 1], repeat=len(values))))
    exact = (np.abs(signs @ values) >= abs(values.sum()) - 1e-12).mean()
    found = sign_flip_p_value(values)
    assert found == pytest.approx(exact, abs=0.025)
    assert found == sign_flip_p_value(-values) == sign_flip_p_value(values)


def test_many_prompts_are_drawn_in_chunks() -> None:
    rng = np.random.default_rng(0)
    assert sign_flip_p_value(rng.normal(0.5, 1, 3000), num_permutations=3000) == 1 / 3001
    assert sign_flip_p_value(rng.normal(0, 1, 3000) * 1e-6, num_permutations=3000) > 0.01


def test_what_was_won_and_lost() -> None:
    before = outcomes([[1], [None], [3], [None]], "before")
    after = outcomes([[2], [1], [3], [None]], "after")
    result = compare(before, after)
    first, second, third = result["success_at"]
    assert (result["baseline"], result["candidate"]) == ("before", "after")
    assert (result["num_prompts"], result["num_prompts_missing"]) == (4, 0)
    assert (first["won"], first["lost"], first["difference"]) == (["p001"], ["p000"], 0.0)
    assert (second["won"], second["lost"], second["difference"]) == (["p001"], [], 0.25)
    assert (third["baseline"], third["candidate"]) == (0.5, 0.75)


def test_success_is_that_of_the_metrics() -> None:
    samples: Samples = [[1, None, 2], [None, None, 3], [1, 1, 1]]
    first = np.array([turn or 0 for turns in samples for turn in turns])
    metrics = success_metrics(
        np.repeat(np.arange(3), 3), first, np.where(first > 0, first, 3), max_turns=MAX_TURNS
    )
    result = compare(outcomes(samples), outcomes(samples))
    expected = [row["estimate"] for row in metrics["success_at"]]
    assert [row["baseline"] for row in result["success_at"]] == pytest.approx(expected)


def test_a_prompt_without_trajectories_is_missing_and_not_lost() -> None:
    before = outcomes([[1], [1], [None]], "before")
    after = outcomes([[1], [], [1]], "after", failed=("p001", "p002"))
    result = compare(before, after)
    assert (result["num_prompts"], result["num_prompts_missing"]) == (2, 1)
    assert result["success_at"][0]["lost"] == []
    assert result["success_at"][0]["baseline"] == 0.5
    with pytest.raises(TaskError, match="No prompt has trajectories of both"):
        compare(before, outcomes([[], [], []], failed=("p000", "p001", "p002")))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"samples": [[1]]}, "1 are not shared (1 only with a, 0 only with b, 0 of one id"),
        ({"samples": [[1]] * 4}, "2 are not shared (0 only with a, 2 only with b"),
        ({"samples": [[1]] * 2, "gold": "2"}, "2 are not shared (0 only with a, 0 only with b, 2"),
    ],
)
def test_other_prompts_are_refused_with_their_number(other: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskError) as caught:
        compare(outcomes([[1], [1]], "a"), outcomes(**other, name="b"))
    assert said in caught.value.message
