"""A grader of one's own, by import path."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from drift_ray.errors import ConfigError
from drift_ray.tasks.graders.reference import normalize
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
    module_name, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _unusable(path, f"its module needs {error.name!r}, which is missing") from error
        raise _unusable(path, f"there is no module {error.name!r}") from None
    except Exception as error:
        raise _unusable(path, f"importing {module_name} raised {error!r}") from error
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise _unusable(path, f"{module_name} has no {attribute!r}") from None
    if not callable(found):
        raise _unusable(path, f"it is a {type(found).__name__} and cannot be called")
    return found


def _unusable(path: str, why: str) -> ConfigError:
    return ConfigError(
        f"grader {path!r}: {why}",
        "A grader is an importable function grade(answer, gold) -> bool; on a cluster its module "
        "must be in the working directory or installed on every node.",
    )
