"""A task of one's own, as the tests name it by import path."""

from __future__ import annotations

from typing import Any

from drift_ray.config import EnvironmentConfig
from drift_ray.tasks.environment import StepResult, UnaryFeedbackEnvironment
from drift_ray.types import Grader, Message, Prompt


def high_low(answer: str, gold: str) -> str:
    return "too high {turn}" if float(answer) > float(gold) else "too low"


def no_text(answer: str, gold: str) -> Any:
    return 7


class Polite(UnaryFeedbackEnvironment):
    """Greets as its options say."""

    def __init__(self, prompt: Prompt, *, config: EnvironmentConfig, grade: Grader) -> None:
        super().__init__(prompt, config=config, grade=grade)
        self._greeting = str(config.options["greeting"])

    def reset(self) -> tuple[Message, ...]:
        return (Message(role="user", content=self._greeting), *super().reset())


class NoStep:
    """Not an environment."""

    def reset(self) -> StepResult | None:
        return None
