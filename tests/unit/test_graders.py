"""Graders by name: reference, choice, numeric, and one's own."""

from __future__ import annotations

import pickle
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.errors import ConfigError
from drift_ray.grader_config import canonical_text, parse_grader
from drift_ray.tasks.graders import get_grader, grade_reference, needs_process, normalize
from drift_ray.tasks.graders.choice import find_letter
from drift_ray.tasks.graders.numbers import find_number, parse_number
from drift_ray.types import Verdict

INLINE = [
    "reference",
    {"name": "reference", "benchmark": "gpqa"},
    {"name": "reference", "benchmark": "theoremqa"},
    "choice",
    "numeric",
]


def correct(grader: object, answer: str, gold: str) -> bool:
    return get_grader(grader)(answer, gold).correct  # type: ignore[arg-type]


def test_reference_ignores_case_and_white_space() -> None:
    assert grade_reference(" X +\t1\n", "x+1").correct
    assert not grade_reference("1/2", "0.5").correct


@pytest.mark.parametrize("gold", ["", " ", "12"])
@pytest.mark.parametrize("grader", ["reference", "choice", "numeric", "math"])
def test_an_empty_answer_is_never_correct(grader: str, gold: str) -> None:
    verdict = get_grader(grader)(" \n", gold)
    assert not verdict.correct
    assert not verdict.valid


@given(st.text(min_size=1))
def test_normalized_answers_grade_alike(answer: str) -> None:
    verdict = grade_reference(answer, answer)
    assert verdict.correct is verdict.valid
    assert verdict.normalized == normalize(answer)
    assert not any(character.isspace() for character in verdict.normalized)


@pytest.mark.parametrize("grader", INLINE, ids=str)
@given(answer=st.text(), gold=st.text())
def test_inline_graders_never_raise_and_accept_the_gold_itself(
    grader: object, answer: str, gold: str
) -> None:
    grade = get_grader(grader)  # type: ignore[arg-type]
    assert grade(gold, gold).correct or not gold.strip()
    verdict = grade(answer, gold)
    assert not any(character.isspace() for character in verdict.normalized)


@pytest.mark.parametrize("grader", [*INLINE, "math", "tests.unit.judges:fair"], ids=str)
def test_graders_pickle(grader: object) -> None:
    grade = pickle.loads(pickle.dumps(get_grader(grader)))  # type: ignore[arg-type]
    assert grade("a", "a").correct
    assert not grade("a", "b").correct


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "b"),
        ("b", "b"),
        ("(B)", "b"),
        ("[c]", "c"),
        ("B.", "b"),
        (r"\boxed{B}", "b"),
        (r"$\text{(C)}$", "c"),
        ("**D**", "d"),
        ("<answer>B</answer>", "b"),
        ("option B", "b"),
        ("Option (b)", "b"),
        ("The answer is B", "b"),
        ("the answer is: b.", "b"),
        ("Answer: (J)", "j"),
        ("Final answer: D", "d"),
        ("choose c.", "c"),
        ("(B) Paris", "b"),
        ("b. Paris", "b"),
        ("B: because it rains", "b"),
        ("I think C", "c"),
        ("I'd say B", "b"),
        ("It isn't B", None),
        ("It is not (B)", None),
        ("Not A but C", "c"),
        ("C, because A is wrong", None),
        ("The answer is A. No: the answer is B", "b"),
        ("A or B", None),
        ("The answer is A or B", None),
        ("(A), (B)", None),
        ("ABCD", None),
        ("A dog", None),
        ("a dog", None),
        ("the best choice is a dog", None),
        ("not B", None),
        ("K", None),
        ("none of them", None),
        ("", None),
    ],
)
def test_the_letter_that_an_answer_means(text: str, letter: str | None) -> None:
    assert find_letter(text) == letter
    assert correct("choice", text, "(B)") is (letter == "b")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-3", "-3"),
        ("+3.50", "7/2"),
        (".5", "1/2"),
        ("12.", "12"),
        ("1,234.5", "2469/2"),
        ("1 234 567", "1234567"),
        (r"1{,}000", "1000"),
        ("1.2e-3", "3/2500"),
        (r"1.2 \times 10^{-3}", "3/2500"),
        ("2 x 10^3", "2000"),
        ("10^{-2}", "1/100"),
        ("3 / 4", "3/4"),
        (r"-\frac{3}{4}", "-3/4"),
        ("2 1/2", "5/2"),
        (r"-2\frac12", "-5/2"),
        ("$5.00", "5"),
        (r"50\%", "50%"),
        ("50 percent", "50%"),
        ("− 3", "-3"),
        ("1,2", None),
        ("12,34", None),
        ("0,123", None),
        ("1 2", None),
        ("1/0", None),
        ("1e999999999999", None),
        ("9" * 5000, None),
        ("2x", None),
        ("3+4", None),
        ("1-2", None),
        ("five", None),
        ("", None),
    ],
)
def test_plain_numbers_are_read_exactly(text: str, value: str | None) -> None:
    number = parse_number(text)
    assert (None if number is None else str(number)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is 12.", 12),
        ("**Answer:** 12", 12),
        ("It is **12**.", 12),
        ("２ apples", 2),
        ("1½ miles", Fraction(3, 2)),
        ("x = 5", 5),
        ("12 apples", 12),
        ("5km", 5),
        ("about -7 degrees", -7),
        ("between 3 and 4", None),
        ("2x", None),
        ("10-12", None),
        ("version 1.2.3", None),
    ],
)
def test_the_only_number_of_a_sentence(text: str, value: Fraction | int | None) -> None:
    number = find_number(text)
    assert (None if number is None else number.value) == value


@given(st.fractions(max_denominator=10**6), st.sampled_from(["{}", "{}.", "x = {}", "{} kg"]))
def test_numeric_is_reflexive_over_forms(value: Fraction, form: str) -> None:
    assert correct("numeric", form.format(value), str(value))
    verdict = get_grader("numeric")(str(value), str(value))
    assert verdict.normalized == str(value)
    assert not correct("numeric", str(value + 1), str(value)) or abs(value) >= 10**6


def test_numeric_tolerances() -> None:
    assert correct("numeric", "1000001", "1000000")
    assert not correct("numeric", "1000001.1", "1000000")
    assert not correct("numeric", "0.001", "0")
    loose = {"name": "numeric", "rel_tol": 0.01, "abs_tol": 0.5}
    assert correct(loose, "0.5", "0")
    assert not correct(loose, "0.51", "0")
    assert correct(loose, "101", "100")
    assert not correct(loose, "101.01", "100")
    exact = {"name": "numeric", "rel_tol": 0}
    assert correct(exact, "0.50", "1/2")
    assert not correct(exact, "0.500000000001", "1/2")


def test_numeric_percentages() -> None:
    assert correct("numeric", "50%", "0.5")
    assert correct("numeric", "50", "50%")
    assert not correct("numeric", "0.5", "50")
    assert not correct("numeric", "0.5%", "50%")


def test_numeric_without_a_number_is_not_valid() -> None:
    verdict = get_grader("numeric")("I do not know", "12")
    assert verdict == Verdict(correct=False, valid=False, normalized="idonotknow")


def test_own_graders_return_a_bool_or_a_verdict() -> None:
    assert get_grader("tests.unit.judges:fair")(" A", " A") == Verdict(
        correct=True, valid=True, normalized="a"
    )
    assert get_grader("tests.unit.judges:detailed")("A", "B").normalized == "<A>"
    assert not correct("tests.unit.judges:Strict.judge", "A", "B")
    with pytest.raises(TypeError, match=r"vague returned \(False, .*bool or a Verdict"):
        get_grader("tests.unit.judges:vague")("A", "A")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("tests.unit.nowhere:fair", "there is no module 'tests.unit.nowhere'"),
        ("nowhere.at.all:fair", "there is no module 'nowhere'"),
        ("tests.unit.judges:unfair", "tests.unit.judges has no 'unfair'"),
        ("tests.unit.judges:NOT_A_FUNCTION", "it is a int and cannot be called"),
        ("tests.unit.judges:", "no import path of the form package.module:function"),
        ("a b:c", "no import path of the form package.module:function"),
    ],
)
def test_unusable_own_graders_say_why(path: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get_grader(path)
    assert message in str(caught.value)


def test_a_module_that_cannot_be_imported_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judge_needs_more.py").write_text("import not_installed_at_all\n")
    (tmp_path / "judge_is_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="needs 'not_installed_at_all', which is missing"):
        get_grader("judge_needs_more:fair")
    with pytest.raises(ConfigError, match="importing judge_is_broken raised ZeroDivisionError"):
        get_grader("judge_is_broken:fair")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("refrence", r"'refrence'[\s\S]*Did you mean 'reference'"),
        ({"rel_tol": 1}, "needs a `name`"),
        ({"name": "numeric", "rel_tl": 1}, r"unknown option 'rel_tl'\. Did you mean 'rel_tol'"),
        ({"name": "numeric", "rel_tol": -1}, "rel_tol: Input should be greater"),
        ({"name": "reference", "benchmark": "gqpa"}, "benchmark: Input should be 'metamathqa'"),
        ({"name": "math", "rel_tol": 1}, r"unknown option 'rel_tol' \(its options: none\)"),
        ("{not json", "not JSON"),
        (12, "a name or a mapping"),
    ],
)
def test_wrong_choices_say_what_is_known(choice: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_grader(choice)  # type: ignore[arg-type]


@pytest.mark.parametrize("grader", [*INLINE, "math", {"name": "numeric", "abs_tol": 2}], ids=str)
def test_the_canonical_text_chooses_the_same_grader(grader: object) -> None:
    config = parse_grader(grader)  # type: ignore[arg-type]
    text = canonical_text(config)
    assert parse_grader(text) == config
    assert canonical_text(parse_grader(text)) == text


def test_only_graders_that_may_hang_need_processes() -> None:
    assert [needs_process(grader) for grader in INLINE] == [False] * len(INLINE)  # type: ignore[arg-type]
    assert needs_process("math")
    assert needs_process("tests.unit.judges:fair")
