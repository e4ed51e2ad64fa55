"""Two-digit addition: the small task of the tests and of the demo.

The nano reference policy (`drift_ray.nano`) knows this task and errs at it. A sum and its
mirror image always share a split, so a held-out sum was never seen in either order.
"""

from __future__ import annotations

import hashlib
import random
from functools import cache
from typing import Literal, get_args

from drift_ray.errors import TaskError
from drift_ray.types import Prompt

Split = Literal["train", "test"]

TASK = "addition"
OPERANDS = range(10, 100)
TEST_FRACTION = 0.2


def split_of(a: int, b: int) -> Split:
    """The split of the unordered pair {a, b}: the same on every machine and for every seed."""
    low, high = sorted((a, b))
    digest = hashlib.blake2b(f"{low}+{high}".encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest) < TEST_FRACTION * 2**64 else "train"


@cache
def pairs(split: Split) -> tuple[tuple[int, int], ...]:
    """Every unordered pair of the split, as (smaller, larger), in ascending order."""
    return tuple((a, b) for a in OPERANDS for b in OPERANDS if a <= b and split_of(a, b) == split)


def prompt(a: int, b: int) -> Prompt:
    """The question ``a+b=?`` with its answer."""
    question = f"{a}+{b}=?"
    return Prompt(prompt_id=f"{TASK}-{a}+{b}", task=TASK, question=question, gold=str(a + b))


def prompts(split: Split, num_prompts: int, seed: int = 0) -> list[Prompt]:
    """Draw distinct prompts of one split.

    Mirror images (48+37, 37+48) are two prompts but one sum, hence not independent. They come
    last: the list starts with every sum once, in random order and orientation. A shorter list
    of the same seed is a prefix of a longer one.

    Args:
        split: ``train`` or ``test``.
        num_prompts: How many, at least one.
        seed: Decides order and orientation, not the split.

    Raises:
        TaskError: Unknown split, or a number of prompts that the split does not have.
    """
    if split not in get_args(Split):
        raise TaskError(
            f"task {TASK}: unknown split {split!r}", hint=f"choose one of {get_args(Split)}"
        )
    rng = random.Random(seed)
    once = [rng.sample(pair, 2) for pair in pairs(split)]
    rng.shuffle(once)
    both = once + [[b, a] for a, b in once if a != b]
    if not 1 <= num_prompts <= len(both):
        raise TaskError(
            f"task {TASK}: {num_prompts} prompts asked of split {split!r}, which has {len(both)}",
            hint=f"ask for 1 to {len(both)} prompts",
        )
    return [prompt(a, b) for a, b in both[:num_prompts]]
