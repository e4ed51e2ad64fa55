"""Weightings by name: what a group's returns make of its trajectories.

``weighting.method`` names one of :data:`WEIGHTINGS`, or a function of your own by its import path
``package.module:function``. All have one signature: a :class:`Rows` and β of each group, giving one
weight a row. They see whole groups, however these are spread over files, and any number of them.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drift_ray.errors import ConfigError, DataError
from drift_ray.weighting.groups import Bools, Floats, Groups
from drift_ray.weighting.importance import importance_weights


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rows:
    """N trajectories, as a weighting sees them."""

    groups: Groups
    shaped_return: Floats
    """Shape ``[N]``, finite."""
    first_success_turn: npt.NDArray[np.int32]
    """Shape ``[N]``, 1-based, 0 = never."""

    @property
    def solved(self) -> Bools:
        """Shape ``[N]``: whether a turn succeeded."""
        return self.first_success_turn > 0


WeightFunction = Callable[[Rows, Floats], Floats]
"""Rows and β, shape ``[num_groups]``, to weights, shape ``[N]``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighting:
    """A way to weigh, and what it goes by."""

    weigh: WeightFunction
    uses_beta: bool = True
    first_turn_only: bool = False
    """Whether returns end with the first turn."""
    own: bool = False
    """Whether it is a user's function, so that what it returns must be checked."""


def drift(rows: Rows, beta: Floats) -> Floats:
    """exp(R/β) over its group mean: the closed-form optimum (DRIFT, arXiv 2605.31455)."""
    return importance_weights(rows.shaped_return, rows.groups, beta=beta)


def uniform(rows: Rows, beta: Floats) -> Floats:
    """1 for all: fine-tuning on the reference policy's own samples; the limit β → ∞."""
    return np.ones(len(rows.shaped_return))


def success_only(rows: Rows, beta: Floats) -> Floats:
    """Mean one over a group, shared alike by its successes: rejection sampling.

    Best-of-n fine-tuning, as in STaR (arXiv 2203.14465) and RFT (arXiv 2308.01825), with every
    prompt that was ever solved counting the same. Groups without success have weight 0.
    """
    share = rows.groups.mean(rows.solved)
    return rows.solved / rows.groups.spread(np.where(share > 0, share, 1.0))


def group_advantage(rows: Rows, beta: Floats) -> Floats:
    """R minus its group mean: signed, mean zero, in units of the return.

    With it the loss is the on-policy policy gradient at π_ref with the group mean as baseline
    (REINFORCE; GRPO, arXiv 2402.03300, without the division by the standard deviation, which
    arXiv 2503.20783 shows to bias it). exp(R/β)'s weights are 1 + advantage/β + O(1/β²).
    """
    returns = rows.shaped_return
    return returns - rows.groups.spread(rows.groups.mean(returns))


WEIGHTINGS = {
    "drift": Weighting(weigh=drift),
    "uniform": Weighting(weigh=uniform, uses_beta=False),
    "success_only": Weighting(weigh=success_only, uses_beta=False),
    "single_turn": Weighting(weigh=drift, first_turn_only=True),
    "group_advantage": Weighting(weigh=group_advantage, uses_beta=False),
}


def get_weighting(method: str) -> Weighting:
    """The weighting of a name or import path.

    Raises:
        ConfigError: There is none, or its module cannot be imported.
    """
    if method in WEIGHTINGS:
        return WEIGHTINGS[method]
    module, separator, name = method.partition(":")
    if not separator:
        close = difflib.get_close_matches(method, WEIGHTINGS, n=1)
        raise ConfigError(
            f"weighting.method: there is no weighting {method!r}."
            + (f" Did you mean {close[0]!r}?" if close else ""),
            f"Choose one of {', '.join(WEIGHTINGS)}, or a function as package.module:function.",
        )
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"weighting.method: cannot import {method!r}: {error}.",
            "Write package.module:function, and install the package or set PYTHONPATH, on every "
            "node.",
        ) from error
    if not callable(function):
        raise ConfigError(f"weighting.method: {method!r} is {type(function).__name__}, no function")
    return Weighting(weigh=function, own=True)


def own_code(method: str) -> str:
    """Hash of the module of an own weighting, so that weights are redone when it changes.

    Empty for the weightings of this package.
    """
    weighting = get_weighting(method)
    if not weighting.own:
        return ""
    try:
        source = inspect.getsource(importlib.import_module(method.partition(":")[0]))
    except (OSError, TypeError) as error:
        raise ConfigError(
            f"weighting.method: the source of {method!r} cannot be read: {error}.",
            "Wrap it in a Python function of your own: weights are redone when its code changes.",
        ) from error
    return hashlib.blake2b(source.encode(), digest_size=8).hexdigest()


def weigh_rows(method: str, rows: Rows, beta: Floats) -> Floats:
    """Weights of whole groups, before any limit; shape ``[N]``.

    Raises:
        DataError: A function of the user's returned something else; names the first row.
    """
    weighting = get_weighting(method)
    weight = weighting.weigh(rows, beta)
    if not weighting.own:
        return weight
    weight = np.asarray(weight, dtype=np.float64)
    if weight.shape != rows.shaped_return.shape:
        raise DataError(
            f"The weighting {method} returned shape {weight.shape} for "
            f"{len(rows.shaped_return)} trajectories.",
            "Return one weight a row.",
        )
    if not np.isfinite(weight).all():
        row = int(np.argmin(np.isfinite(weight)))
        raise DataError(
            f"The weighting {method} gave trajectory {row} (return {rows.shaped_return[row]}) the "
            f"weight {weight[row]}.",
            "Return finite numbers.",
        )
    return weight
