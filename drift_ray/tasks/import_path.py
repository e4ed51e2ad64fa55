"""Code of one's own, by import path."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from drift_ray.errors import ConfigError


def import_callable(path: str, *, what: str, hint: str) -> Callable[..., Any]:
    """What ``package.module:name`` names.

    Args:
        path: The import path.
        what: What to call it in an error.
        hint: What it should be.

    Raises:
        ConfigError: The module or the attribute is missing, or is not callable.
    """

    def unusable(why: str) -> ConfigError:
        return ConfigError(
            f"{what} {path!r}: {why}",
            f"{hint}. On this machine the folder of its module must be in PYTHONPATH; on a cluster "
            "the module must be in the working directory or installed on every node.",
        )

    module_name, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise unusable(f"its module needs {error.name!r}, which is missing") from error
        raise unusable(f"there is no module {error.name!r}") from None
    except Exception as error:
        raise unusable(f"importing {module_name} raised {error!r}") from error
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise unusable(f"{module_name} has no {attribute!r}") from None
    if not callable(found):
        raise unusable(f"it is a {type(found).__name__} and cannot be called")
    return found
