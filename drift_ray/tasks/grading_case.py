"""A case that waits for its verdict, and the cases that one grading process has in hand."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from drift_ray.errors import GradingCause, GradingError
from drift_ray.tasks.grading_worker import EXCEPTION
from drift_ray.types import Verdict


@dataclass(slots=True, eq=False)
class Case:
    """One answer; whoever asked waits for ``future``."""

    answer: str
    gold: str
    future: Future[Verdict] = field(default_factory=Future)
    num_lost: int = 0
    """Processes that died with it at the head of their batch, before they had begun it."""

    def settle(self, reply: tuple[Any, ...]) -> None:
        """Pass on what the grading process replied."""
        kind, *details = reply
        if kind == EXCEPTION:
            what, trace = details
            self.fail("exception", f"the grader raised {what}", trace=trace)
        else:
            correct, valid, normalized = details
            verdict = Verdict(correct=correct, valid=valid, normalized=normalized)
            self.future.set_result(verdict)

    def fail(self, cause: GradingCause, what: str, trace: str = "") -> None:
        """Say why there is no verdict."""
        message = f"{what} (answer {_short(self.answer)}, gold {_short(self.gold)})"
        self.future.set_exception(GradingError(message, cause=cause, trace=trace))


@dataclass(slots=True)
class Batch:
    """Cases of one message."""

    waiting: deque[Case]
    running: Case | None = None
    """The case whose reply is next."""
    has_begun: bool = False
    """Whether the process has read the message."""


def _short(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:100]}…")
