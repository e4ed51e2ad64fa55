"""Mathematical equivalence: what is cheap is decided here, the rest by math-verify.

math-verify's own deadline needs signals on the main thread; it is off, and a ``GradingPool`` gives
the deadline. What is known to take forever (towers of powers, thousands of digits) is compared
as text and never reaches it.
"""

from __future__ import annotations

import logging
import re

from drift_ray.errors import ConfigError
from drift_ray.tasks.graders.algebra import equivalent
from drift_ray.tasks.graders.lists import lists_agree, parse_list
from drift_ray.tasks.graders.notation import (
    compact,
    expression_of,
    is_words,
    without_assignment,
)
from drift_ray.tasks.graders.numbers import agree, parse_number
from drift_ray.tasks.graders.reference import grade_reference
from drift_ray.tasks.graders.units import split_unit
from drift_ray.types import Grader, Verdict

MAX_CHARS = 1000
"""Longer answers are compared as text."""
MAX_DEPTH = 12
"""So are deeper nested ones: the parser's time is exponential in brackets."""

# Evaluated, these take hours or gigabytes: long literals, huge or stacked powers, huge factorials.
_TOO_LARGE = re.compile(
    r"\d{100}"
    r"|\^\s*\{?\s*\(?\s*-?[\d,]{5,}"
    r"|(?:\d{4,}|!\s*[)}]*)\s*!"
    r"|(?:\\[dt]?binom|\\choose)\b.*?\d{5,}"
)
# a^b^c is a^(b^c), (a^b)^c is a^(b·c); both fine while small, a third storey never is.
_STOREYS = re.compile(r"\d[)}\s]*\^[{(\s]*-?(\d+)([)}\s]*)\^[{(\s]*-?(\d+)([)}\s]*\^)?")
_MAX_EXPONENT = 10_000
_MAX_ROOTS = 6
# An expression that breaks off: math-verify would read 1^ as 1.
_BREAKS_OFF = re.compile(r"[-+*/^_=]\s*$")

# The parser learns its grammar as it goes; these lead it through most of it.
_FIRST_TIMES = (
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
    ("x^2+2x+1", "(x+1)^2"),
    ("y=3x-1", "3x-y=1"),
    (r"x \ge 2", r"[2,\infty)"),
    (r"(-\infty,1)\cup(2,3]", r"(2,3]\cup(-\infty,1)"),
    (r"\{1,\frac{2}{3}\}", r"\frac{2}{3}, 1"),
    (r"\left(3,\frac{\pi}{2}\right)", "(3, 1.570796)"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\ \sqrt{4}\end{pmatrix}"),
    (r"\sin^2 x+\cos^2 x", r"\log_2 8-2"),
    (r"3\pm 2\sqrt{2}", r"e^{2}, |x|"),
    (r"\binom{5}{2}", r"\frac{5!}{12}+0.5x_1"),
)


def math_grader() -> Grader:
    """The grader, once it is certain that math-verify is there.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import math_verify
    except ImportError as error:
        raise ConfigError(
            f"grader 'math' needs math-verify: {error}",
            "Install it with: pip install 'drift-ray[math]'",
        ) from None
    # Its warning that the deadline is off would stand in every worker's log.
    logging.getLogger(math_verify.__name__).setLevel(logging.ERROR)
    return grade_math


def warm_up() -> None:
    """Grade once what is slow the first time, seconds in all, so that no deadline counts it.

    Raises:
        ConfigError: math-verify is not installed.
    """
    grade = math_grader()
    for answer, gold in _FIRST_TIMES:
        grade(answer, gold)


def grade_math(answer: str, gold: str) -> Verdict:
    """Grade by mathematical equivalence.

    Values are equal whatever their form: fractions, decimals, roots, powers, products in any
    order, ``x=3`` and ``3``. Sets and lists compare in any order, tuples in theirs, intervals
    with their ends. Exact values are equal exactly; a decimal may round a fraction or an
    irrational to six digits. ``50%`` is 0.5, and 50 where the other side has no sign. A unit may
    be left out but not be another one. Words compare as text. What cannot be read as mathematics
    is correct only if it is written alike, up to case.
    """
    if max(len(answer), len(gold)) > MAX_CHARS:
        return grade_reference(answer, gold)
    said, expected = expression_of(answer), expression_of(gold)
    if not said or not expected:
        return grade_reference(answer, gold)
    (value, unit), (gold_value, gold_unit) = split_unit(said), split_unit(expected)
    value, gold_value = without_assignment(value, gold_value)
    number, gold_number = parse_number(value), parse_number(gold_value)
    written = compact(said)
    if written == compact(expected):
        correct = True
    elif unit and gold_unit and unit != gold_unit:
        correct = False
    elif number and gold_number:
        correct = agree(number, gold_number)
    else:
        correct = _equivalent(value, gold_value)
    return Verdict(
        correct=correct,
        valid=bool(written),
        normalized=str(number) if number else written,
    )


def _equivalent(answer: str, gold: str) -> bool:
    if not answer or not gold or any(map(_is_text_only, (answer, gold))):
        return bool(answer) and compact(answer) == compact(gold)
    said, expected = parse_list(answer), parse_list(gold)
    if said and expected and (decided := lists_agree(said, expected)) is not None:
        return decided
    return equivalent(answer, gold)


def _is_text_only(expression: str) -> bool:
    return (
        is_words(expression)
        or _BREAKS_OFF.search(expression) is not None
        or _TOO_LARGE.search(expression) is not None
        or any(map(_is_tower, _STOREYS.finditer(expression)))
        or expression.count("sqrt") > _MAX_ROOTS
        or _depth(expression) > MAX_DEPTH
    )


def _is_tower(found: re.Match[str]) -> bool:
    lower, closing, upper, more = found.groups()
    if more or len(lower) > 4 or len(upper) > 4:
        return True
    low, high = int(lower), int(upper)
    # By its bits first: the power itself may be too long to compute.
    if not closing:
        return low > 1 and (high > _MAX_EXPONENT.bit_length() or low**high > _MAX_EXPONENT)
    return low * high > _MAX_EXPONENT


def _depth(expression: str) -> int:
    depth = deepest = 0
    for character in expression:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest
