"""Tuples, intervals, sets and bare lists of plain numbers, compared without a computer algebra."""

from __future__ import annotations

import re
from dataclasses import dataclass

from drift_ray.tasks.graders.numbers import PlainNumber, agree, parse_number

_ENCLOSED = re.compile(r"(?:\\(?=\{))?([\[({]?)(.*?)(?:\\(?=\}))?([\])}]?)", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class NumberList:
    """Two numbers or more, and what stands around them."""

    brackets: str
    """``()``, ``[)``, …; empty for sets and bare lists, whose order means nothing."""
    numbers: tuple[PlainNumber, ...]


def parse_list(text: str) -> NumberList | None:
    r"""Read ``(1, 2)``, ``[0.5,1)``, ``\{1,2\}`` or ``1, 2``; None if it is anything else."""
    found = _ENCLOSED.fullmatch(text)
    if found is None or "," not in text:
        return None
    opening, inner, closing = found.groups()
    brackets = f"{opening}{closing}"
    if len(brackets) == 1 or "{" in brackets.replace("{}", ""):
        return None
    numbers = [parse_number(part.strip()) for part in inner.split(",")]
    if not all(numbers):
        return None
    return NumberList(
        brackets="" if brackets == "{}" else brackets,
        numbers=tuple(number for number in numbers if number),
    )


def lists_agree(answer: NumberList, gold: NumberList) -> bool | None:
    """Whether both are the same; None if that depends on how brackets are understood.

    Two numbers in brackets are an interval: round and square ends differ. A bare list may stand
    for a tuple, and a longer tuple may be written in either brackets.
    """
    if answer.brackets != gold.brackets:
        is_interval = all(each.brackets and len(each.numbers) == 2 for each in (answer, gold))
        return False if is_interval else None
    said, expected = answer.numbers, gold.numbers
    if not answer.brackets:
        said, expected = _as_set(said), _as_set(expected)
    return len(said) == len(expected) and all(map(agree, said, expected))


def _as_set(numbers: tuple[PlainNumber, ...]) -> tuple[PlainNumber, ...]:
    return tuple(sorted(set(numbers), key=lambda number: number.value))
