"""The scorers of reasoning-gym as a grader."""

from __future__ import annotations

from dataclasses import dataclass

from drift_ray.tasks.graders.reference import normalize
from drift_ray.tasks.reasoning_gym import score
from drift_ray.types import Verdict


@dataclass(frozen=True, slots=True)
class ReasoningGymGrader:
    """Asks the generator that made the problem, which the gold names.

    Args:
        min_score: An answer is correct from this score on.
    """

    min_score: float

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
