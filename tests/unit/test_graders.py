"""Graders and their registry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.errors import ConfigError
from drift_ray.tasks.graders import get_grader, grade_reference, normalize


def test_reference_ignores_case_and_white_space() -> None:
    assert grade_reference(" X +\t1\n", "x+1").correct
    assert not grade_reference("1/2", "0.5").correct


@pytest.mark.parametrize("gold", ["", " ", "12"])
def test_an_empty_answer_is_never_correct(gold: str) -> None:
    verdict = grade_reference(" \n", gold)
    assert not verdict.correct
    assert not verdict.valid


@given(st.text(min_size=1))
def test_normalized_answers_grade_alike(answer: str) -> None:
    verdict = grade_reference(answer, answer)
    assert verdict.correct is verdict.valid
    assert verdict.normalized == normalize(answer)
    assert not any(character.isspace() for character in verdict.normalized)


def test_registry() -> None:
    assert get_grader("reference") is grade_reference
    with pytest.raises(ConfigError, match=r"'refrence'[\s\S]*reference"):
        get_grader("refrence")
