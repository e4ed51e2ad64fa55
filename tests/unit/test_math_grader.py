"""Mathematical equivalence: what a user would call the same answer."""

from __future__ import annotations

import json
import sys
import threading
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.errors import ConfigError
from drift_ray.tasks.graders import get_grader
from drift_ray.tasks.graders.mathematics import grade_math, warm_up

CASES = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "math_cases.jsonl").read_text().splitlines()
]
# The powers and factorials of arbitrary text may take for ever: that is what the pool is for.
HARMLESS = st.characters(exclude_characters="^!*²³", codec="utf-8")


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    warm_up()


def test_cases() -> None:
    """All in one test: a test each takes longer than most of the gradings."""
    wrong = [
        case
        for case in CASES
        if grade_math(case["answer"], case["gold"]).correct is not case["correct"]
    ]
    assert not wrong


def test_there_are_many_different_cases() -> None:
    assert len({(case["answer"], case["gold"]) for case in CASES}) >= 200
    assert all(case["reason"] for case in CASES)


@given(st.text(HARMLESS, max_size=40), st.sampled_from(["12", r"\frac{1}{2}", "(1,2)", "east"]))
def test_it_never_raises_and_accepts_the_gold_itself(answer: str, gold: str) -> None:
    assert isinstance(grade_math(answer, gold).correct, bool)
    assert grade_math(answer, answer).correct or not answer.strip()
    assert grade_math(gold, gold).correct


@given(st.fractions(max_denominator=10**4), st.integers(2, 9))
def test_every_form_of_a_fraction_is_equal(value: Fraction, factor: int) -> None:
    top, bottom = value.numerator, value.denominator
    forms = [
        rf"\frac{{{top}}}{{{bottom}}}",
        f"{top * factor}/{bottom * factor}",
        f"x = {top}/{bottom}",
        rf"$\dfrac{{{top}}}{{{bottom}}}$",
    ]
    verdicts = [grade_math(form, str(value)) for form in forms]
    assert all(verdict.correct for verdict in verdicts)
    assert {verdict.normalized for verdict in verdicts} == {str(value)}
    assert not grade_math(forms[0], str(value + 1)).correct


def test_it_needs_no_signals() -> None:
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(grade_math(r"\sqrt{8}", r"2\sqrt{2}")))
    thread.start()
    thread.join()
    assert [verdict.correct for verdict in verdicts] == [True]


@pytest.mark.parametrize("error", [MemoryError, RecursionError, TypeError, ValueError])
def test_an_error_of_math_verify_is_not_a_wrong_answer(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_args: object, **_options: object) -> bool:
        raise error("no verdict")

    monkeypatch.setattr("math_verify.grader.sympy_expr_eq", fail)
    with pytest.raises(error, match="no verdict"):
        grade_math("x^2+x", "x(x+1)")


def test_without_math_verify_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ConfigError, match=r"drift-ray\[math\]"):
        get_grader("math")


@pytest.mark.parametrize(
    "answer",
    [
        "{code}",
        "1+{code}",
        "({code})+1",
        r"\boxed{{{code}}}",
        r"\frac{{1}}{{{code}}}",
        r"\text{{{code}}}",
        "[{code}][0]",
    ],
)
def test_an_answer_is_never_run(tmp_path: Path, answer: str) -> None:
    """SymPy's parser evaluates what it is given."""
    ran = tmp_path / "ran"
    code = f"__import__('pathlib').Path('{ran}').touch()"
    for text in (answer.format(code=code), answer.format(code=f"print(open('{ran}','w'))")):
        assert not grade_math(text, "1").correct
        grade_math("1", text)  # datasets are not trusted either
    assert not ran.exists()
