"""Groups that are spread over several parts, as when a prompt was sampled again later.

They are weighed as the whole groups they are, in one place, by the function that weighs all others;
the parts they came from get their rows' weights back. So the weights do not depend on how groups
are spread over parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from drift_ray.config import BetaTarget, WeightingConfig
from drift_ray.errors import DataError
from drift_ray.weighting.groups import Floats
from drift_ray.weighting.weigh import Weighed, needs_run_beta, rows_of, solve_run_beta, weigh_groups


class Settled(NamedTuple):
    """Rows of one part that belong to split groups, weighed."""

    rows: npt.NDArray[np.int64]
    importance_weight: Floats


def find_split_groups(tables: Iterable[pa.Table]) -> pa.Array:
    """Prompt ids that occur in more than one part.

    Args:
        tables: Return tables, one a part: see :func:`drift_ray.weighting.part.return_table`.
    """
    # Each chunk's dictionary names each of its groups once.
    ids = [pc.unique(table["prompt_id"]).dictionary_decode() for table in tables]
    counts = pc.value_counts(pa.chunked_array(ids, pa.string()))
    return counts.field("values").filter(pc.greater(counts.field("counts"), 1))


def settle(
    tables: Iterable[tuple[str, pa.Table]],
    split_groups: pa.Array,
    config: WeightingConfig,
    *,
    run_beta: float | None,
) -> tuple[dict[str, Settled], Weighed]:
    """Weigh the split groups of all parts.

    Args:
        tables: Name and return table of every part.
        split_groups: Their prompt ids.
        config: How to weigh.
        run_beta: See :func:`drift_ray.weighting.weigh.weigh_groups`.

    Returns:
        What each part gets back, and what the groups amount to.

    Raises:
        DataError: A trajectory stands in two parts: it would count twice.
    """
    rows: dict[str, npt.NDArray[np.int64]] = {}
    pieces = []
    for part, table in tables:
        ids = table["prompt_id"].cast(pa.string())
        mine = np.flatnonzero(pc.is_in(ids, split_groups).to_numpy())
        if len(mine):
            rows[part] = mine
            pieces.append(table.take(mine))
    together = one_table(pieces)
    _check_no_repeats(together, rows)
    weighed = weigh_groups(together, config, run_beta=run_beta)
    ends = np.cumsum([len(mine) for mine in rows.values()])
    weights = np.split(weighed.importance_weight, ends[:-1])
    settled = {
        part: Settled(rows=mine, importance_weight=weight)
        for (part, mine), weight in zip(rows.items(), weights, strict=True)
    }
    return settled, weighed


def weigh_rest(
    returns: pa.Table,
    settled: Settled | None,
    config: WeightingConfig,
    *,
    run_beta: float | None,
) -> tuple[Floats, Weighed]:
    """Weigh the groups that are whole in one part.

    Args:
        returns: The part's return table.
        settled: Its rows of split groups, if there are any.
        config: How to weigh.
        run_beta: See :func:`drift_ray.weighting.weigh.weigh_groups`.

    Returns:
        Weights of all rows of the part, and what its whole groups amount to.
    """
    if settled is None:
        weighed = weigh_groups(returns, config, run_beta=run_beta)
        return weighed.importance_weight, weighed
    here = np.ones(returns.num_rows, dtype=np.bool_)
    here[settled.rows] = False
    weighed = weigh_groups(returns.filter(pa.array(here)), config, run_beta=run_beta)
    weight = np.empty(returns.num_rows)
    weight[here], weight[settled.rows] = weighed.importance_weight, settled.importance_weight
    return weight, weighed


def weigh_all(returns: Sequence[pa.Table], config: WeightingConfig) -> Weighed:
    """Weigh all groups of a run in this process, however they are spread over parts.

    Args:
        returns: Return tables, one a part: see :func:`drift_ray.weighting.part.return_table`.
        config: How to weigh.
    """
    everything = one_table(list(returns))
    run_beta = None
    if needs_run_beta(config) and isinstance(config.beta, BetaTarget) and everything.num_rows:
        run_beta = solve_run_beta(
            rows_of(everything), config.beta, drop_all_failed=config.all_failed == "drop"
        )
    return weigh_groups(everything, config, run_beta=run_beta)


def one_table(tables: list[pa.Table]) -> pa.Table:
    """Tables below each other, their dictionaries made one."""
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def _check_no_repeats(table: pa.Table, rows: dict[str, npt.NDArray[np.int64]]) -> None:
    codes = rows_of(table).groups.codes
    index = table["trajectory_index"].to_numpy()
    order = np.lexsort((index, codes))
    repeats = np.flatnonzero((np.diff(codes[order]) == 0) & (np.diff(index[order]) == 0))
    if not len(repeats):
        return
    first, second = sorted(order[repeats[0] : repeats[0] + 2].tolist())
    where = [f"{part}, row {row}" for part, mine in rows.items() for row in mine]
    raise DataError(
        f"Trajectory {index[first]} of prompt {table['prompt_id'][first].as_py()!r} stands twice: "
        f"in {where[first]} and in {where[second]} (columns 'prompt_id', 'trajectory_index').",
        "Delete one of these parts, then run the same command again.",
    )
