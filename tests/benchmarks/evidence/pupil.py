"""The pupil whose dialogues about ``chain_sum`` a nano model is taught to imitate.

As that of :mod:`drift_ray.nano.dialogues`, it errs, and when told so mostly draws again. Its
distribution is known, so the model is taught all that could be said, not only what was.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from drift_ray.nano.dialogues import CLOSE, END, FEEDBACK, MAX_TURNS, OPEN, Piece

DATASET = "chain_sum"
OPTIONS = {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}
QUESTION = "State the final answer to the following arithmetic problem: {} {} {} ="
WORDS = (FEEDBACK, QUESTION.format("1", "+", "1"), QUESTION.format("1", "-", "1"))

_RIGHT, _CARRY, _WRONG_SIGN, _OTHER_OPERATION, _OFF = 0.45, 0.20, 0.10, 0.10, 0.15
_REJECTED_FACTOR = 0.85
_PROBLEM = re.compile(r"(\d+) ([+-]) (\d+) =$")


def answers(question: str, rejected: Sequence[str] = ()) -> dict[str, float]:
    """Odds of the next answer, after these were rejected."""
    match = _PROBLEM.search(question)
    if match is None:
        raise ValueError(f"not a problem of two terms: {question!r}")
    a, b = int(match[1]), int(match[3])
    plus, minus = a + b, a - b
    right, other = (plus, minus) if match[2] == "+" else (minus, plus)
    carries = (a % 10 + b % 10 >= 10) if match[2] == "+" else (a % 10 < b % 10)
    slip = 10 if match[2] == "-" else -10
    odds: dict[str, float] = defaultdict(float)
    odds[str(right)] += _RIGHT
    odds[str(right + slip * carries)] += _CARRY
    odds[str(-right)] += _WRONG_SIGN
    odds[str(other)] += _OTHER_OPERATION
    for offset in (-10, -1, 1, 10):
        odds[str(right + offset)] += _OFF / 4
    times = Counter(rejected)
    scaled = {answer: p * _REJECTED_FACTOR ** times[answer] for answer, p in odds.items()}
    norm = sum(scaled.values())
    return {answer: p / norm for answer, p in scaled.items()}


def dialogue(question: str, gold: str, rng: random.Random) -> list[Piece]:
    """Draw a dialogue, in pieces of one token, each with the odds of what could stand there."""
    said: list[str] = []
    pieces: list[Piece] = []
    request = question
    while len(said) < MAX_TURNS and gold not in said:
        odds = answers(question, sorted(said))
        (answer,) = rng.choices(list(odds), weights=list(odds.values()))
        pieces += [(f"<|user|>{request}{END}<|assistant|>", None), (OPEN, {OPEN: 1.0})]
        pieces += [(sign, _next(odds, answer[:i])) for i, sign in enumerate(answer)]
        pieces += [(CLOSE, _next(odds, answer)), (END, {END: 1.0})]
        said.append(answer)
        request = FEEDBACK
    return pieces


def _next(odds: dict[str, float], written: str) -> dict[str, float]:
    """Odds of the sign, or closing tag, after what is written of an answer."""
    found: dict[str, float] = defaultdict(float)
    for answer, p in odds.items():
        if answer.startswith(written):
            found[answer[len(written)] if len(answer) > len(written) else CLOSE] += p
    norm = sum(found.values())
    return {sign: p / norm for sign, p in found.items()}
