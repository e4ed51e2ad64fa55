"""A grader of one's own, by import path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from drift_ray.tasks.graders.reference import normalize
from drift_ray.tasks.import_path import import_callable
from drift_ray.types import Verdict


@dataclass(frozen=True, slots=True)
class CustomGrader:
    """Calls ``module:function`` as ``grade(answer, gold) -> bool | Verdict``.

    A bool is completed to a verdict: valid unless the answer is blank, normalised as text. The
    path is resolved anew where the grader is unpickled, so the function itself need not pickle.

    Args:
        path: ``package.module:function``.

    Raises:
        ConfigError: The module or the attribute is missing, or is not callable.
    """

    path: str

    def __post_init__(self) -> None:
        _resolve(self.path)

    def __call__(self, answer: str, gold: str) -> Verdict:
        """Grade one answer.

        Raises:
            TypeError: The function returned neither a bool nor a verdict.
            Exception: Whatever the function raises.
        """
        result = _resolve(self.path)(answer, gold)
        if isinstance(result, Verdict):
            return result
        # No truth value of anything else: a tuple (False, "reason") would be true.
        if not isinstance(result, bool):
            raise TypeError(
                f"grader {self.path} returned {result!r}; it must return a bool or a Verdict"
            )
        normalized = normalize(answer)
        return Verdict(correct=result, valid=bool(normalized), normalized=normalized)


def _resolve(path: str) -> Callable[[str, str], Any]:
    return import_callable(
        path,
        what="grader",
        hint="A grader is an importable function grade(answer, gold) -> bool",
    )
