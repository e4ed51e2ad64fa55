"""Rollouts: a frozen policy plays multi-turn episodes; trajectories land in Parquet.

Read in the order of the data: ``chat`` (messages to tokens), ``episode`` (one trajectory),
``protocol`` and the engines behind it, ``player`` (many episodes on one engine), ``loop`` (the
thread that owns one), ``dispatch`` (which replica plays what), ``worker``, ``fleet`` and ``pool``
(Ray), ``sampling`` (missing parts of a folder), ``monitor`` and ``status`` (seen from outside),
``stage``.

The package can be called: ``drift_ray.rollout(config)`` is :func:`drift_ray.api.rollout`, of the
same name.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """Python puts a package's name in place of any function of that name beside it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return importlib.import_module("drift_ray.api").rollout(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
