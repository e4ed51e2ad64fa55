"""What the nano model is taught: dialogues whose answers come from a noise model.

The noise model is a pupil who adds two-digit numbers:

- it forgets the carry of the units, the more often the larger the sum (systematic error);
- it is off by 1 or 10, or reverses the digits (random errors);
- told that it was wrong it mostly draws again, only a little wiser: each time an answer was
  given and rejected, its odds shrink by a factor near one. So it repeats wrong answers;
- now and then it forgets the closing tag.

Its distribution is known exactly, hence so is how far a trained model is from it.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

FEEDBACK = "Incorrect. Please think again."
END = "<|end|>"
OPEN, CLOSE = "<answer>", "</answer>"
MAX_TURNS = 5

FORGET_CARRY = (0.30, 0.60)  # probability at the smallest and at the largest sum
OFF_BY = 0.15  # shared by -10, -1, +1, +10
REVERSED = 0.10
REJECTED_FACTOR = 0.85  # of the odds of an answer, for each time it was rejected
UNCLOSED = 0.03  # probability of a missing </answer>

Piece = tuple[str, dict[str, float] | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """One assistant message of a dialogue."""

    answer: str
    closed: bool

    @property
    def text(self) -> str:
        """The message as the model should write it."""
        return OPEN + self.answer + (CLOSE if self.closed else "")


@lru_cache(maxsize=2**17)
def answer_distribution(a: int, b: int, rejected: tuple[str, ...] = ()) -> dict[str, float]:
    """The noise model's next answer to ``a+b=?`` after the given answers were rejected."""
    total = a + b
    low, high = FORGET_CARRY
    forget = low + (high - low) * (total - 20) / (198 - 20)
    carries = a % 10 + b % 10 >= 10
    odds: dict[str, float] = defaultdict(float)
    odds[str(total)] += 1 - forget - OFF_BY - REVERSED
    odds[str(total - 10 if carries else total)] += forget
    odds[str(total)[::-1]] += REVERSED
    for offset in (-10, -1, 1, 10):
        odds[str(total + offset)] += OFF_BY / 4
    times = Counter(rejected)
    scaled = {answer: p * REJECTED_FACTOR ** times[answer] for answer, p in odds.items()}
    norm = sum(scaled.values())
    return {answer: p / norm for answer, p in scaled.items()}


@lru_cache(maxsize=2**17)
def continuations(a: int, b: int, rejected: tuple[str, ...], written: str) -> dict[str, float]:
    """Odds of the next piece after ``<answer>`` and some digits: a digit, the closing tag, END."""
    odds: dict[str, float] = defaultdict(float)
    for answer, p in answer_distribution(a, b, rejected).items():
        if answer == written:
            odds[CLOSE] += p * (1 - UNCLOSED)
            odds[END] += p * UNCLOSED
        elif answer.startswith(written):
            odds[answer[len(written)]] += p
    norm = sum(odds.values())
    return {piece: p / norm for piece, p in odds.items()}


def sample_dialogue(a: int, b: int, rng: random.Random) -> list[Reply]:
    """Draw the replies of one dialogue: it ends at the right answer or after MAX_TURNS.

    An unclosed answer does not count, whatever it says: the environment cannot read it.
    """
    replies: list[Reply] = []
    while len(replies) < MAX_TURNS:
        answers = answer_distribution(a, b, rejected_answers(replies))
        (answer,) = rng.choices(list(answers), weights=list(answers.values()))
        replies.append(Reply(answer=answer, closed=rng.random() >= UNCLOSED))
        if replies[-1].closed and answer == str(a + b):
            break
    return replies


def rejected_answers(replies: Sequence[Reply]) -> tuple[str, ...]:
    """What the environment read and called wrong; in ascending order, which does not matter."""
    return tuple(sorted(reply.answer for reply in replies if reply.closed))


def pieces(a: int, b: int, replies: Sequence[Reply]) -> list[Piece]:
    """A dialogue as the chat template renders it, cut into pieces.

    Each piece of a reply is one token and comes with the odds of all pieces that could stand
    in its place; a user's message, markers included, is a single piece without odds.
    """
    rendered: list[Piece] = []
    request = f"{a}+{b}=?"
    for turn, reply in enumerate(replies):
        rejected = rejected_answers(replies[:turn])
        rendered += [(f"<|user|>{request}{END}<|assistant|>", None), (OPEN, {OPEN: 1.0})]
        for i, digit in enumerate(reply.answer):
            rendered.append((digit, continuations(a, b, rejected, reply.answer[:i])))
        ending = continuations(a, b, rejected, reply.answer)
        rendered += [(CLOSE, ending), (END, {END: 1.0})] if reply.closed else [(END, ending)]
        request = FEEDBACK
    return rendered
