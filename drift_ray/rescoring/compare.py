"""What other verdicts change: which trajectories, and which importance weights by how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from drift_ray.config import WeightingConfig
from drift_ray.store import RunStore
from drift_ray.weighting.diagnostics import summarize
from drift_ray.weighting.part import content_of, read_columns, return_table
from drift_ray.weighting.split import weigh_all
from drift_ray.weighting.verdicts import read_verdicts, verdict_name, with_verdicts
from drift_ray.weighting.weigh import Weighed

_SAME = 1e-9
"""Weights that differ less, of their size or absolutely, count as the same: rounding."""

CHANGE_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("trajectory_index", pa.int32()),
        ("before", pa.float64()),
        ("after", pa.float64()),
    ]
)
"""One row an importance weight that other verdicts change."""


def compare(
    store: RunStore, parts: Sequence[str], config: WeightingConfig, name: str
) -> tuple[dict[str, Any], pa.Table]:
    """Trajectories and weights under the recorded verdicts and under others.

    Args:
        store: The run directory.
        parts: Names of all rollout parts.
        config: How to weigh.
        name: Of the verdict table.

    Returns:
        Figures ready for JSON, and a table of ``CHANGE_SCHEMA``, greatest changes first.
    """
    before, after, verdicts, first_success = [], [], [], []
    for part in parts:
        columns = read_columns(store, part)
        found = read_verdicts(store, part, name, content_of(columns))
        where = store.path(verdict_name(part, name))
        before.append(return_table(columns, config))
        after.append(return_table(with_verdicts(columns, found, where), config))
        verdicts.append(found.drop_columns(["rewards", "answer_norms"]))
        first_success.append(columns["first_success_turn"].fill_null(0).to_numpy())
    found = pa.concat_tables(verdicts).combine_chunks()
    old, new = weigh_all(before, config), weigh_all(after, config)
    has_verdict = found["has_verdict"].to_numpy()
    weight = np.zeros(found.num_rows)
    weight[has_verdict] = new.importance_weight
    changes = _changes(found, old.importance_weight, weight)
    figures = {
        **_trajectory_figures(found, np.concatenate(first_success)),
        "weights": {
            "parameters": config.model_dump(mode="json", exclude={"gate", "verdicts"}),
            "num_changed": changes.num_rows,
            "largest_change": changes.slice(0, 1).to_pylist()[0] if changes.num_rows else None,
            "before": _spread(old),
            "after": _spread(new),
        },
    }
    return figures, changes


def _changes(
    found: pa.Table, before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]
) -> pa.Table:
    size = np.abs(after - before)
    rows = np.flatnonzero(~np.isclose(after, before, rtol=_SAME, atol=_SAME))
    rows = rows[np.argsort(-size[rows], kind="stable")]
    keys = found.select(["prompt_id", "trajectory_index"]).take(pa.array(rows))
    columns = {name: keys[name] for name in keys.column_names}
    return pa.table({**columns, "before": before[rows], "after": after[rows]}, CHANGE_SCHEMA)


def _trajectory_figures(found: pa.Table, was: npt.NDArray[np.int32]) -> dict[str, int]:
    has_verdict = found["has_verdict"].to_numpy()
    now = found["first_success_turn"].fill_null(0).to_numpy()
    return {
        "num_trajectories": found.num_rows,
        "num_without_verdict": int((~has_verdict).sum()),
        "num_censored": int(found["censored"].fill_null(False).to_numpy().sum()),
        "num_changed": int((has_verdict & (now != was)).sum()),
        "num_solved_before": int((was > 0).sum()),
        "num_solved_after": int((now > 0).sum()),
    }


def _spread(weighed: Weighed) -> dict[str, float | None]:
    figures = summarize(weighed.groups, weighed.turns)
    return {
        "ess_frac": figures["ess_frac"]["mean"],
        "effective_num_trajectories": figures["effective_num_trajectories"],
        "expected_return": figures["expected_return"]["weighted"],
        "all_failed_frac": figures["all_failed_frac"],
    }
