"""From the returns of whole groups to their weights, and what these amount to group by group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from drift_ray.config import BetaTarget, WeightingConfig
from drift_ray.errors import DataError
from drift_ray.weighting.diagnostics import (
    WHAT_IF,
    group_statistics,
    spread_statistics,
    turn_masses,
)
from drift_ray.weighting.groups import Floats, Groups
from drift_ray.weighting.limits import limit
from drift_ray.weighting.temperature import solve_beta
from drift_ray.weighting.weightings import Rows, get_weighting, weigh_rows


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Weighed:
    """Whole groups, weighed."""

    importance_weight: Floats
    """Shape ``[N]``."""
    groups: pa.Table
    """One row a group: see :func:`drift_ray.weighting.diagnostics.group_statistics`."""
    turns: pa.Table
    """One row a first success turn: see :func:`drift_ray.weighting.diagnostics.turn_masses`."""


def rows_of(returns: pa.Table) -> Rows:
    """The rows of a return table, as weightings see them."""
    return Rows(
        groups=Groups.of(returns["prompt_id"].combine_chunks()),
        shaped_return=returns["shaped_return"].to_numpy(),
        first_success_turn=returns["first_success_turn"].to_numpy(),
    )


def weigh_groups(returns: pa.Table, config: WeightingConfig, *, run_beta: float | None) -> Weighed:
    """Weigh trajectories that make up whole groups.

    Args:
        returns: See :func:`drift_ray.weighting.part.return_table`.
        config: How to weigh.
        run_beta: β of the run, where it had to be solved for: see :func:`solve_run_beta`.
    """
    rows = rows_of(returns)
    beta = _beta_of_groups(rows, config, run_beta)
    weighed = limit(weigh_rows(config.method, rows, beta), rows, config)
    weight = weighed.importance_weight
    what_if = {}
    if get_weighting(config.method).uses_beta:
        for name, factor in WHAT_IF.items():
            other = limit(weigh_rows(config.method, rows, factor * beta), rows, config)
            what_if[name] = spread_statistics(other.importance_weight, rows)
    flags = {name: returns[name].to_numpy() for name in ("truncated", "format_failed")}
    return Weighed(
        importance_weight=weight,
        groups=group_statistics(
            weight, rows, beta=beta, removed=weighed.removed, flags=flags, what_if=what_if
        ),
        turns=turn_masses(weight, rows),
    )


def needs_run_beta(config: WeightingConfig) -> bool:
    """Whether β depends on the returns of the whole run."""
    target = config.beta
    uses_beta = get_weighting(config.method).uses_beta
    return uses_beta and isinstance(target, BetaTarget) and target.per == "run"


def solve_run_beta(rows: Rows, target: BetaTarget, *, drop_all_failed: bool) -> float:
    """The one β of a run at which its mean ESS/G or KL is as wanted.

    Args:
        rows: All trajectories of the run; at least one.
        target: What is wanted. Reached before any limit is applied.
        drop_all_failed: Whether groups without success will carry no weight and so do not count.

    Raises:
        DataError: There is no trajectory.
    """
    if not len(rows.groups):
        raise DataError("There is no trajectory that weighting.beta could be solved for.")
    any_solved = rows.groups.any(rows.solved)
    if drop_all_failed and any_solved.any():
        kept = rows.groups.spread(any_solved)
        returns, groups = rows.shaped_return[kept], rows.groups.only(kept)
    else:
        returns, groups = rows.shaped_return, rows.groups
    return float(_solve(returns, groups, target)[0])


def _beta_of_groups(rows: Rows, config: WeightingConfig, run_beta: float | None) -> Floats:
    target = config.beta
    if not get_weighting(config.method).uses_beta:
        return np.full(len(rows.groups), np.nan)
    if isinstance(target, BetaTarget) and target.per == "group":
        return _solve(rows.shaped_return, rows.groups, target)
    beta = run_beta if isinstance(target, BetaTarget) else target
    if beta is None:
        raise ValueError("run_beta is needed: weighting.beta is to be solved for the run")
    return np.full(len(rows.groups), beta)


def _solve(returns: Floats, groups: Groups, target: BetaTarget) -> Floats:
    measure, wanted = target.wanted
    per_group = target.per == "group"
    return solve_beta(returns, groups, measure=measure, target=wanted, per_group=per_group)
