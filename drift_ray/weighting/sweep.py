"""Other β and γ on the rollouts that are there: read once, weighed many times, nothing redone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from pydantic import ValidationError

from drift_ray.config import BetaTarget, WeightingConfig
from drift_ray.errors import ConfigError
from drift_ray.store import WEIGHTS, RunStore
from drift_ray.weighting.advice import Summary
from drift_ray.weighting.passes import prepare, read_returns, weigh_parts
from drift_ray.weighting.report import outcome_summary
from drift_ray.weighting.weightings import get_weighting

SWEEP_FILE = f"{WEIGHTS}/sweep.json"


def sweep_configs(
    config: WeightingConfig, *, betas: Sequence[float], gammas: Sequence[float]
) -> list[WeightingConfig]:
    """Every combination of β and γ; those of ``config`` where none are given.

    Raises:
        ConfigError: A value is out of bounds, or the weighting does not exist.
    """
    get_weighting(config.method)
    found = []
    wanted: list[float | BetaTarget] = [*betas] or [config.beta]
    for gamma, beta in product(gammas or [config.gamma], wanted):
        try:
            found.append(
                WeightingConfig.model_validate({**dict(config), "gamma": gamma, "beta": beta})
            )
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(
                f"Cannot weigh with beta={beta}, gamma={gamma}: {first['loc'][0]}: {first['msg']}.",
                "beta is above 0, gamma between 0 and 1.",
            ) from None
    return found


def sweep(
    store: RunStore, parts: Sequence[str], configs: Sequence[WeightingConfig]
) -> list[Summary]:
    """What each weighting would amount to; committed as ``weights/sweep.json``, no weights are.

    Returns:
        One summary a weighting: its ``parameters``, what
        :func:`drift_ray.weighting.diagnostics.summarize` gives, and ``advice``.

    Raises:
        DataError: See :func:`drift_ray.weighting.passes.read_returns`.
    """
    returns = read_returns(store, parts, configs)
    outcomes = weigh_parts(store, returns, prepare(returns, configs))
    rows = [outcome_summary(*pair) for pair in zip(outcomes, configs, strict=True)]
    store.write_json(SWEEP_FILE, {"num_parts": len(parts), "sweep": rows})
    return rows
