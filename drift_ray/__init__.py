"""DRIFT on Ray: decoupled multi-turn rollouts and importance-weighted fine-tuning.

The stages are functions, :func:`rollout`, :func:`weigh`, :func:`train` and :func:`evaluate`, and
:func:`load_trajectories` gives what they made as an Arrow table: see :mod:`drift_ray.api`.
``HOW_IT_WORKS.md``, beside this file, leads from the method's objective to the code.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drift_ray.api import evaluate, load_trajectories, rollout, train, weigh

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "load_trajectories", "rollout", "train", "weigh"]


def __getattr__(name: str) -> Any:
    # Only when asked for, so that importing the package and its help stay instant.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("drift_ray.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
