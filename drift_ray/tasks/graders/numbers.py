"""Plain numbers as people and LaTeX write them, read exactly.

Nothing is evaluated: a number is a literal, scientific notation, or a fraction of two literals.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from drift_ray.tasks.graders.typography import plain

MAX_CHARS = 1000
"""Longer texts are not read as numbers: exact arithmetic on them costs quadratic time."""
MAX_EXPONENT = 400
"""Of scientific notation, either sign: covers every double and bounds the size of a fraction."""
ROUNDING = Fraction(1, 10**6)
"""Relative error of a decimal that stands for a fraction without finite decimals."""

_LITERAL = r"[-+]?(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]*)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_EXPONENT = r"\{?(?P<exp>[-+]?[0-9]+)\}?"
_SCIENTIFIC = rf"(?P<num>{_LITERAL})(?:(?:[eE]|\*10\^){_EXPONENT})?"
_TEN_TO = rf"(?P<one>[-+]?)10\^{_EXPONENT.replace('exp', 'exp10')}"
_RATIO = rf"(?P<top>{_LITERAL})/(?P<bottom>{_LITERAL})"
_MIXED = r"(?P<sign>[-+]?)(?P<whole>[0-9]+)\s+(?P<over>[0-9]+)/(?P<under>[0-9]+)"
_NUMBER = re.compile(f"(?:{_MIXED}|{_RATIO}|{_TEN_TO}|{_SCIENTIFIC})(?P<percent>%?)")
# In a sentence: not within a word or another number; "5km" has a unit, "2x" is no number.
_IN_TEXT = re.compile(rf"(?<![\w.^/*+-]){_NUMBER.pattern}(?![\d^/*+=-]|[A-Za-z](?![A-Za-z])|\.\d)")

_FRAC = re.compile(r"\\[dtc]?frac(?:\{([^{}]*)\}\{([^{}]*)\}|\s*([0-9])\s*([0-9]))")
_TIDY: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile("[−–]"), "-"),
    (re.compile(r"\\left|\\right|\\displaystyle|\\!|\\?[$€£¥₹]"), ""),
    (re.compile(r"\{,\}|\\,(?=[0-9]{3})|,\\[!,]"), ","),
    (re.compile(r"\\[,;: ]|\\quad|~"), " "),
    (re.compile(r"\\times|\\cdot|[×·]"), "*"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<=[0-9.])\s*x\s*(?=10\^)"), "*"),
    (re.compile(r"\s*([*/^])\s*"), r"\1"),
    (re.compile(r"(?<![0-9a-zA-Z])([-+])\s+(?=[0-9.])"), r"\1"),
    (re.compile(r"\s*(?:\\%|%|\\text\w*\{\s*percent\s*\}|\bpercent\b|\bpct\b)"), "%"),
)
_SPACED_THOUSANDS = re.compile(r"(?<![\w.,])[1-9][0-9]{0,2}(?: [0-9]{3})+(?![\w,])")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainNumber:
    """A number and how it was written."""

    value: Fraction
    """As written, a percent sign left out: 50 for ``50%``."""
    percent: bool = False
    """Whether a percent sign followed."""

    def __str__(self) -> str:
        return f"{self.value}%" if self.percent else str(self.value)

    @property
    def has_finite_decimal(self) -> bool:
        """Whether decimals can express it exactly: 1/4 but not 1/3."""
        rest = self.value.denominator
        for prime in (2, 5):
            while rest % prime == 0:
                rest //= prime
        return rest == 1


def parse_number(text: str) -> PlainNumber | None:
    r"""Read a text that is a number and nothing else; None if it is not.

    Understood are ``-3``, ``.5``, ``1,234.5``, ``1 234``, ``1.2e-3``, ``1.2 \times 10^{-3}``,
    ``10^6``, ``3/4``, ``\frac{3}{4}``, ``2 1/2``, ``2\frac12``, each with a percent or currency
    sign or a full stop.
    """
    if len(text) > MAX_CHARS:
        return None
    found = _NUMBER.fullmatch(_tidy(text).strip().removesuffix("."))
    return None if found is None else _value(found)


def find_number(text: str) -> PlainNumber | None:
    """The number of a text: the whole text, else the only one in it; None with none or several.

    A unit or words may stand around it. ``2x`` and ``3 to 4`` are no numbers.
    """
    whole = parse_number(text)
    if whole is not None or len(text) > MAX_CHARS:
        return whole
    found = list(_IN_TEXT.finditer(_tidy(text)))
    return _value(found[0]) if len(found) == 1 else None


def readings(answer: PlainNumber, gold: PlainNumber) -> list[tuple[Fraction, Fraction]]:
    """Pairs of values that count as a match of ``answer`` and ``gold`` if they agree.

    A percentage is its hundredth. Where only one side has the sign it may also be the bare
    number: asked for a percentage, ``50`` and ``50%`` mean the same.
    """
    if answer.percent == gold.percent:
        return [(answer.value, gold.value)]
    pairs = [(answer.value, gold.value)]
    if answer.percent:
        return [*pairs, (answer.value / 100, gold.value)]
    return [*pairs, (answer.value, gold.value / 100)]


def agree(answer: PlainNumber, gold: PlainNumber) -> bool:
    """Whether two numbers are one value, or one is a decimal that rounds the other, a fraction."""
    rounds = answer.has_finite_decimal != gold.has_finite_decimal
    tolerance = ROUNDING if rounds else 0
    return any(abs(a - b) <= tolerance * abs(b) for a, b in readings(answer, gold))


def _tidy(text: str) -> str:
    # The space keeps the whole part of a mixed number apart: 2\frac12 is 2 1/2, not 21/2.
    text = _FRAC.sub(lambda f: f" {f[1] or f[3]}/{f[2] or f[4]}", plain(text))
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    return _SPACED_THOUSANDS.sub(lambda found: found[0].replace(" ", ","), text)


def _value(found: re.Match[str]) -> PlainNumber | None:
    try:
        value = _exact(found)
    except ZeroDivisionError:
        return None
    return None if value is None else PlainNumber(value=value, percent=bool(found["percent"]))


def _exact(found: re.Match[str]) -> Fraction | None:
    if found["whole"]:
        value = int(found["whole"]) + Fraction(int(found["over"]), int(found["under"]))
        return -value if found["sign"] == "-" else value
    if found["top"]:
        return _literal(found["top"]) / _literal(found["bottom"])
    # Its length is checked before it is read: the exponent itself may have thousands of digits.
    exponent = found["exp"] or found["exp10"] or "0"
    if len(exponent) > 5 or abs(int(exponent)) > MAX_EXPONENT:
        return None
    return _literal(found["num"] or f"{found['one']}1") * Fraction(10) ** int(exponent)


def _literal(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))
