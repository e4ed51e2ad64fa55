"""One number against another, within a tolerance."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from drift_ray.tasks.graders.numbers import find_number, readings
from drift_ray.tasks.graders.reference import normalize
from drift_ray.types import Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class NumericGrader:
    """Correct if ``|answer - gold| <= max(rel_tol · |gold|, abs_tol)``, in exact arithmetic.

    Numbers are read as :func:`~drift_ray.tasks.graders.numbers.find_number` documents; ``50%`` is
    0.5, and 50 as well where the other side has no percent sign. An answer without a number, or
    with several, is not valid. Where neither side has one, equal texts are correct.
    """

    rel_tol: float
    """As a share of the gold's magnitude."""
    abs_tol: float
    """In the gold's unit."""

    def __call__(self, answer: str, gold: str) -> Verdict:
        """Grade one answer."""
        number, expected = find_number(answer), find_number(gold)
        text = normalize(answer)
        if number is None or expected is None:
            correct = number is expected and bool(text) and text == normalize(gold)
        else:
            correct = any(self._close(*pair) for pair in readings(number, expected))
        return Verdict(
            correct=correct,
            valid=number is not None,
            normalized=text if number is None else str(number),
        )

    def _close(self, value: Fraction, gold: Fraction) -> bool:
        # As they were written: the float 1e-6 is a little less than a millionth.
        rel_tol, abs_tol = Fraction(str(self.rel_tol)), Fraction(str(self.abs_tol))
        tolerance = max(rel_tol * abs(gold), abs_tol)
        return abs(value - gold) <= tolerance
