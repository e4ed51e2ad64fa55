"""Graders as users write them, good and bad; ``tests.unit.judges:…`` in configurations.

Every grading process imports this module: it needs nothing heavy.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from drift_ray.types import Verdict

NOT_A_FUNCTION = 12


def fair(answer: str, gold: str) -> bool:
    return answer == gold


def detailed(answer: str, gold: str) -> Verdict:
    return Verdict(correct=answer == gold, valid=True, normalized=f"<{answer}>")


def vague(answer: str, gold: str) -> tuple[bool, str]:
    return False, "a tuple is true"


def never(answer: str, gold: str) -> bool:
    return False


class Strict:
    """Holds its judges as methods."""

    @staticmethod
    def judge(answer: str, gold: str) -> bool:
        return answer is not gold and answer == gold


def moody(answer: str, gold: str) -> bool:
    """Does what the answer says."""
    if answer == "hang":
        print("hanging", file=sys.stderr, flush=True)
        while True:
            pass
    if answer == "exit":
        os._exit(3)
    if answer == "segfault":
        ctypes.string_at(0)
    if answer == "raise":
        raise ValueError("not today")
    if answer == "print":
        print("to standard output, where replies go")
    if answer == "alarm":
        signal.alarm(0)
    return answer == gold


def lenient(answer: str, gold: str) -> bool:
    """Fears nothing if there is the file that the environment names."""
    if answer == "raise" and not os.path.exists(os.environ.get("LENIENT_IS_CALM", "")):
        raise ValueError("not today")
    return answer in (gold, "2", "raise")
