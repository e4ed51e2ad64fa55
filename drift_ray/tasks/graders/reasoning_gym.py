"""The scorers of reasoning-gym as a grader."""

from __future__ import annotations

from dataclasses import dataclass

from drift_ray.tasks.graders.reference import normalize
from drift_ray.tasks.reasoning_gym import load_package, score
from drift_ray.types import Verdict


@dataclass(frozen=True, slots=True)
class ReasoningGymGrader:
    """Asks the generator that made the problem, which the gold names.

    Args:
        min_score: An answer is correct from this score on.

    Raises:
        ConfigError: reasoning-gym is not installed.
    """

    min_score: float

    def __post_init__(self) -> None:
        load_package()  # here, where it costs no answer its deadline

    def __call__(self, answer: str, gold: str) -> Verdict:
        """Grade one answer.

        Raises:
            TaskError: The gold names no entry, or another one in this version of the package.
            Exception: Whatever the scorer raises.
        """
        normalized = normalize(answer)
        valid = bool(normalized)
        correct = valid and score(answer, gold) >= self.min_score
        return Verdict(correct=correct, valid=valid, normalized=normalized)
