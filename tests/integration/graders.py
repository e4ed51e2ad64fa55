"""A grader and an environment of one's own that have bad days."""

from __future__ import annotations

import os
import threading

from drift_ray.tasks.environment import StepResult, UnaryFeedbackEnvironment


def moody(answer: str, gold: str) -> bool:
    """Hangs, raises or dies, as the gold decides; otherwise compares."""
    if gold.endswith("7"):
        threading.Event().wait()
    if gold.endswith("6"):
        raise ValueError(f"{gold} brings bad luck")
    if gold.endswith("1"):
        os._exit(1)
    return answer == gold


class Stumbling(UnaryFeedbackEnvironment):
    """Raises in the second turn."""

    def step(self, text: str) -> StepResult:
        result = super().step(text)
        if self._turns_used == 2:
            raise LookupError("lost my way")
        return result
