"""Expressions that only a computer algebra can compare: math-verify, on top of SymPy.

Errors of math-verify are raised, not counted as "wrong", wherever it lets them out. What it keeps
to itself stays "not equal": that it cannot parse a piece of LaTeX, and that SymPy fails to simplify
a difference or to compare two sets, for want of memory or of a rule.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

_POINTS = (0.7310585786, 1.3168473921, 2.2104938265, 0.4179382651, 3.1602936472, 1.8539401726)
"""Values for the variables of two expressions; positive, so that roots and logarithms exist."""


def equivalent(answer: str, gold: str) -> bool:
    """Whether two expressions in LaTeX are equal; takes milliseconds, or for ever.

    Raises:
        Exception: Whatever stops math-verify: then they are neither equal nor different.
    """
    from math_verify import verify

    said, expected = _parse(answer), _parse(gold)
    if any(map(_has_no_value, (*said, *expected))):
        return False
    if len(said) == len(expected) == 1 and _surely_differ(said[0], expected[0]):
        return False
    return verify(
        expected,
        said,
        allow_set_relation_comp=True,
        timeout_seconds=None,
        raise_on_error=True,
    )


def _has_no_value(expression: Any) -> bool:
    """Whether something in it is divided by zero: equal to nothing, and an error to math-verify."""
    from sympy import nan, zoo

    return bool(expression.has(nan, zoo))


def _surely_differ(answer: Any, gold: Any) -> bool:
    """Whether two terms have different values at one point: far cheaper than to simplify.

    False means not known. Constants count as different from a relative 1e-5 on, which is also
    what keeps tiny values apart that math-verify would round to zero.
    """
    from sympy import Expr, Symbol, UnevaluatedExpr

    for term in (answer, gold):
        # A letter may stand for a word or for e, a percentage for its number.
        if not isinstance(term, Expr) or isinstance(term, Symbol) or term.has(UnevaluatedExpr):
            return False
    names = sorted({symbol.name for term in (answer, gold) for symbol in term.free_symbols})
    if len(names) > len(_POINTS):
        return False
    point = dict(zip(names, _POINTS, strict=False))
    values = [_value(term, point) for term in (answer, gold)]
    if None in values:
        return False
    a, b = values
    scale = max(abs(a), abs(b))
    return abs(a - b) > (1e-3 * max(1.0, scale) if names else 1e-5 * scale)


def _value(term: Any, point: dict[str, float]) -> Any:
    """The term's complex value at a point, None if it has none or it is not finite."""
    try:
        values = {symbol: point[symbol.name] for symbol in term.free_symbols}
        value = complex(term.evalf(15, subs=values))
    except Exception:  # whatever SymPy cannot evaluate is left to math-verify
        return None
    return value if abs(value) < 1e300 else None


@lru_cache(maxsize=4096)
def _parse(expression: str) -> list[Any]:
    """What math-verify reads; empty if that is nothing. A group's gold is read once."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse
    from sympy import SympifyError

    try:
        found: list[Any] = parse(
            f"${expression}$",
            [LatexExtractionConfig(), ExprExtractionConfig()],
            fallback_mode="no_fallback",
            parsing_timeout=None,
            raise_on_error=True,
        )
    except SympifyError:  # it is no mathematics
        return []
    return [_with_imaginary_unit(each) for each in found]


def _with_imaginary_unit(expression: Any) -> Any:
    """math-verify leaves ``i`` a variable like any other, so that i² is not -1."""
    from sympy import Expr, FiniteSet, I, MatrixBase, Tuple

    if not isinstance(expression, Expr | FiniteSet | MatrixBase | Tuple):
        return expression
    letters = [symbol for symbol in expression.free_symbols if symbol.name in ("i", "imath")]
    return expression.subs(dict.fromkeys(letters, I)) if letters else expression
