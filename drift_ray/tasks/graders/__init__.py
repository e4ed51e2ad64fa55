"""Is an answer correct? Graders by name; :func:`get_grader` is the way in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drift_ray.grader_config import (
    ChoiceGraderConfig,
    CustomGraderConfig,
    GraderConfig,
    MathGraderConfig,
    NumericGraderConfig,
    ReasoningGymGraderConfig,
    ReferenceGraderConfig,
    parse_grader,
)
from drift_ray.tasks.graders.choice import grade_choice
from drift_ray.tasks.graders.custom import CustomGrader
from drift_ray.tasks.graders.numeric import NumericGrader
from drift_ray.tasks.graders.reasoning_gym import ReasoningGymGrader
from drift_ray.tasks.graders.reference import grade_reference, normalize, reference_grader
from drift_ray.types import Grader

__all__ = ["Grader", "get_grader", "grade_reference", "needs_process", "normalize"]


def get_grader(choice: str | Mapping[str, Any] | GraderConfig) -> Grader:
    """The grader that a configuration chooses: picklable, and safe to call from any thread.

    Args:
        choice: A name, a mapping of name and options, or the canonical text of either.

    Raises:
        ConfigError: Unknown name or option, wrong value, a function that cannot be imported, or a
            package that is not installed.
    """
    match parse_grader(choice):
        case ReferenceGraderConfig(benchmark=benchmark):
            return reference_grader(benchmark)
        case NumericGraderConfig(rel_tol=rel_tol, abs_tol=abs_tol):
            return NumericGrader(rel_tol=rel_tol, abs_tol=abs_tol)
        case ChoiceGraderConfig():
            return grade_choice
        case MathGraderConfig():
            from drift_ray.tasks.graders.mathematics import math_grader

            return math_grader()
        case ReasoningGymGraderConfig(min_score=min_score):
            return ReasoningGymGrader(min_score=min_score)
        case CustomGraderConfig(name=path):
            return CustomGrader(path)


def needs_process(choice: str | Mapping[str, Any] | GraderConfig) -> bool:
    """Whether a grader may hang or crash, so that it belongs into a ``GradingPool``.

    The others take microseconds and are called as they are.

    Raises:
        ConfigError: Unknown name or option, or wrong value.
    """
    own_process = MathGraderConfig | ReasoningGymGraderConfig | CustomGraderConfig
    return isinstance(parse_grader(choice), own_process)
