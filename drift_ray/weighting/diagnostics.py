"""What the weights do to the data, before any GPU hour is spent on them.

Statistics are kept group by group, so that those of any parts of a run are simply put together:
:func:`summarize` is a function of one row a group and does not depend on where groups were weighed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from drift_ray.weighting.groups import Bools, Floats
from drift_ray.weighting.importance import ess, kl_divergence
from drift_ray.weighting.temperature import BETA_RANGE
from drift_ray.weighting.weightings import Rows

NEVER = "never"
WHAT_IF = {"half": 0.5, "double": 2.0}
"""Factors of β whose effect is part of every summary."""
_NUM_BINS = 10


def spread_statistics(weight: Floats, rows: Rows) -> dict[str, Floats]:
    """How the weights are spread over each group, and the return they promise.

    A group without weight has ``ess``, ``largest_share`` and ``kl`` 0 and no expected return; nor
    do signed weights, which are no distribution, have one.

    Returns:
        Columns of shape ``[num_groups]``: ``mass`` Σ|w|, ``squares`` Σw², ``ess`` (Σ|w|)²/Σw²,
        ``largest_share`` max|w|/Σ|w|, ``kl`` the mean of w·log w, ``expected_return`` Σw·R/Σw.
    """
    groups, size = rows.groups, np.abs(weight)
    mass = groups.sum(size)
    scale = np.where(mass > 0, mass, 1.0)
    signed = groups.any(weight < 0)
    expected = groups.sum(weight * rows.shaped_return) / scale
    return {
        "mass": mass,
        "squares": groups.sum(np.square(weight)),
        "ess": ess(weight, groups),
        "largest_share": groups.max(size) / scale,
        "kl": kl_divergence(size, groups),
        "expected_return": np.where(signed | (mass == 0), np.nan, expected),
    }


def group_statistics(
    weight: Floats,
    rows: Rows,
    *,
    beta: Floats,
    removed: Mapping[str, Floats],
    flags: Mapping[str, Bools],
    what_if: Mapping[str, Mapping[str, Floats]],
) -> pa.Table:
    """One row a group: all that :func:`summarize` needs of it.

    Args:
        weight: Shape ``[N]``, after all limits.
        rows: The same N trajectories.
        beta: Shape ``[num_groups]``; NaN if the weighting knows none.
        removed: Mass taken by each limit, shape ``[num_groups]``.
        flags: What is counted beside the weights: ``truncated`` and ``format_failed``, ``[N]``.
        what_if: :func:`spread_statistics` at other temperatures.
    """
    groups = rows.groups
    columns: dict[str, npt.NDArray[Any]] = {
        "size": groups.sizes,
        "num_solved": groups.sum(rows.solved).astype(np.int64),
        "beta": beta,
        "mean_return": groups.mean(rows.shaped_return),
        "num_negative": groups.sum(weight < 0).astype(np.int64),
        **spread_statistics(weight, rows),
    }
    for name, mass in removed.items():
        columns[f"removed.{name}"] = mass
    for name, flag in flags.items():
        columns[f"num.{name}"] = groups.sum(flag).astype(np.int64)
        columns[f"mass.{name}"] = groups.sum(np.abs(weight) * flag)
    for case, statistics in what_if.items():
        columns |= {f"{case}.{name}": values for name, values in statistics.items()}
    return pa.table(columns)


def turn_masses(weight: Floats, rows: Rows) -> pa.Table:
    """Trajectories and weight mass by first success turn, one row for each that occurs."""
    turn = np.maximum(rows.first_success_turn, 0)
    count = np.bincount(turn)
    mass = np.bincount(turn, weights=np.abs(weight))
    occurs = np.flatnonzero(count)
    return pa.table(
        {"turn": occurs, "num_trajectories": count[occurs], "mass": mass[occurs].astype(np.float64)}
    )


def summarize(groups: pa.Table, turns: pa.Table) -> dict[str, Any]:
    """Summarise the weighted trajectories of a run.

    Means and quantiles are over groups, each counting the same. A group that carries no weight has
    no ESS, share, expected return or KL and is left out of theirs; if no group carries weight, or
    weights are signed, what has no meaning is None.

    Args:
        groups: Rows of :func:`group_statistics`, of all groups.
        turns: Rows of :func:`turn_masses`, of all trajectories; turns may occur several times.

    Returns:
        Ready for JSON:

        - ``num_groups``, ``num_trajectories``, ``num_weightless_groups``, ``num_negative``
          (trajectories with a weight below 0), ``all_failed_frac`` and ``all_solved_frac`` (of the
          groups);
        - ``effective_num_trajectories``: (Σ|w|)²/Σw² over all trajectories;
        - ``ess``: ``mean`` and ``min``, in trajectories;
        - ``ess_frac``: ESS over group size: ``mean``, ``min``, ``p10``, ``p50``, ``p90``, ``max``,
          and ``histogram``: groups in ten equal steps from 0 to 1;
        - ``largest_share``: the greatest weight over the group's sum: ``mean`` and ``max``;
        - ``trajectory_frac_by_first_success_turn`` and ``weight_frac_by_first_success_turn``: the
          share of trajectories, and of all weight, by "1", "2", …, "never";
        - ``expected_return``: of the ``reference`` policy, and ``weighted`` (self-normalised
          importance sampling): an estimate for the optimum that training aims at;
        - ``kl_estimate``: mean of w·log w, estimating KL(π*‖π_ref) in nats; at most the logarithm
          of the group size, so it is too low when ``ess_frac`` is small;
        - ``truncated``, ``format_failed``: ``trajectory_frac`` and ``weight_frac`` of the
          trajectories with a turn that was cut off, or that held no answer;
        - ``removed_mass_frac``: share of the weights' mass taken by ``all_failed``, ``clip`` and
          ``min_importance_weight``;
        - ``beta``: ``min``, ``p50``, ``max`` over groups and the share ``at_bound``: at an end of
          the range in which β is sought; None where the weighting has no β;
        - ``what_if``: at half and double β, the ``beta`` and the main figures.
    """
    column = {name: groups[name].to_numpy() for name in groups.column_names}
    carries = column["mass"] > 0
    some = {name: values[carries] for name, values in column.items()}
    num_trajectories = int(column["size"].sum())
    ess_frac = some["ess"] / some["size"]
    # Rounded, so that one half falls into the same bin whatever its last digit came out as.
    in_bins = np.minimum(np.round(ess_frac, 9), 1.0)
    histogram = np.histogram(in_bins, bins=_NUM_BINS, range=(0.0, 1.0))[0]
    signed = bool(column["num_negative"].any())
    return {
        "num_groups": len(carries),
        "num_trajectories": num_trajectories,
        "num_weightless_groups": int(np.count_nonzero(~carries)),
        "num_negative": int(column["num_negative"].sum()),
        "all_failed_frac": _mean(column["num_solved"] == 0),
        "all_solved_frac": _mean(column["num_solved"] == column["size"]),
        "effective_num_trajectories": _effective(column, ""),
        "ess": {"mean": _mean(some["ess"]), "min": _quantile(some["ess"], 0.0)},
        "ess_frac": {
            "mean": _mean(ess_frac),
            "min": _quantile(ess_frac, 0.0),
            "p10": _quantile(ess_frac, 0.1),
            "p50": _quantile(ess_frac, 0.5),
            "p90": _quantile(ess_frac, 0.9),
            "max": _quantile(ess_frac, 1.0),
            "histogram": histogram.tolist(),
        },
        "largest_share": {
            "mean": _mean(some["largest_share"]),
            "max": _quantile(some["largest_share"], 1.0),
        },
        **_by_turn(turns),
        "expected_return": {
            "reference": _mean(some["mean_return"]),
            "weighted": _mean(some["expected_return"]),
        },
        "kl_estimate": None if signed else _mean(some["kl"]),
        **{
            name: {
                "trajectory_frac": _ratio(column[f"num.{name}"].sum(), num_trajectories),
                "weight_frac": _ratio(column[f"mass.{name}"].sum(), column["mass"].sum()),
            }
            for name in ("truncated", "format_failed")
        },
        "removed_mass_frac": _removed(column),
        "beta": _betas(column["beta"]),
        "what_if": {
            case: _what_if(column, case, factor)
            for case, factor in WHAT_IF.items()
            if f"{case}.ess" in column
        },
    }


def _what_if(column: Mapping[str, npt.NDArray[Any]], case: str, factor: float) -> dict[str, Any]:
    carries = column[f"{case}.mass"] > 0
    beta = column["beta"]
    return {
        "beta": _quantile(factor * beta, 0.5),
        "ess_frac": _mean((column[f"{case}.ess"] / column["size"])[carries]),
        "effective_num_trajectories": _effective(column, f"{case}."),
        "largest_share": _mean(column[f"{case}.largest_share"][carries]),
        "expected_return": _mean(column[f"{case}.expected_return"][carries]),
        "kl_estimate": _mean(column[f"{case}.kl"][carries]),
    }


def _effective(column: Mapping[str, npt.NDArray[Any]], prefix: str) -> float:
    squares = column[f"{prefix}squares"].sum()
    return float(column[f"{prefix}mass"].sum() ** 2 / squares) if squares > 0 else 0.0


def _removed(column: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
    removed = {
        name.removeprefix("removed."): float(values.sum())
        for name, values in column.items()
        if name.startswith("removed.")
    }
    before = float(column["mass"].sum()) + sum(removed.values())
    return {name: _ratio(mass, before) for name, mass in removed.items()}


def _betas(beta: Floats) -> dict[str, float | None] | None:
    if not len(beta) or np.isnan(beta).any():
        return None
    low, high = BETA_RANGE
    at_bound = (beta <= low * (1 + 1e-9)) | (beta >= high * (1 - 1e-9))
    return {
        "min": float(beta.min()),
        "p50": _quantile(beta, 0.5),
        "max": float(beta.max()),
        "at_bound": _mean(at_bound),
    }


def _by_turn(turns: pa.Table) -> dict[str, dict[str, float]]:
    turn = turns["turn"].to_numpy()
    shares = {}
    for name, values in (("trajectory", "num_trajectories"), ("weight", "mass")):
        sums = np.bincount(turn, weights=turns[values].to_numpy(), minlength=1)
        by_turn = (sums / (sums.sum() or 1.0)).tolist()
        shares[f"{name}_frac_by_first_success_turn"] = {
            str(k): share for k, share in enumerate(by_turn[1:], 1)
        } | {NEVER: by_turn[0]}
    return shares


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else 0.0


def _mean(values: npt.NDArray[Any]) -> float | None:
    found = float(np.mean(values)) if len(values) else np.nan
    return None if np.isnan(found) else found


def _quantile(values: Floats, q: float) -> float | None:
    found = float(np.quantile(values, q)) if len(values) else np.nan
    return None if np.isnan(found) else found
