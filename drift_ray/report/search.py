"""Trajectories that fit a search, one part of a run in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from drift_ray.report.results import Figures
from drift_ray.report.trajectories import Source, applied_format_penalty, read_all
from drift_ray.store import RunStore
from drift_ray.weighting.groups import Groups
from drift_ray.weighting.importance import relative_return

_SEARCHED = ("prompt_id", "question", "gold")


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """Which trajectories are wanted; what is left out matches all."""

    text: str = ""
    """Part of the prompt's id, question or gold; case does not matter."""
    solved: bool | None = None

    def matches(self, table: pa.Table) -> pa.ChunkedArray:
        """Which rows fit."""
        found = pc.is_valid(table["prompt_id"])
        if self.text:
            hits = [pc.match_substring(table[c], self.text, ignore_case=True) for c in _SEARCHED]
            found = pc.or_(pc.or_(hits[0], hits[1]), hits[2])
        if self.solved is not None:
            first = table["first_success_turn"]
            found = pc.and_(found, pc.is_valid(first) if self.solved else pc.is_null(first))
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A trajectory and what its weight is made of."""

    row: Mapping[str, Any]
    """Columns of ``WEIGHED_SCHEMA``."""
    best_return: float | None
    """Greatest return of its prompt's trajectories in its part; None where it was not weighed."""
    num_in_group: int
    """Trajectories of its prompt in its part that were weighed."""


def find(store: RunStore, source: Source, search: Search) -> Iterator[Found]:
    """The trajectories that fit, in the order in which they were sampled.

    Raises:
        StageError: There are no trajectories at all.
        DataError: A part is damaged or foreign.
    """
    for table in read_all(store, source):
        if table["shaped_return"].null_count:
            columns = {
                "best": pa.nulls(table.num_rows, pa.float64()),
                "size": table["num_in_group"],
            }
        else:
            groups = Groups.of(table["prompt_id"].combine_chunks())
            returns = table["shaped_return"].to_numpy()
            columns = {
                "best": pa.array(returns - relative_return(returns, groups)),
                "size": pa.array(groups.spread(groups.sizes)),
            }
        kept = search.matches(table)
        others = pa.table(columns).filter(kept)
        for row, best, size in zip(
            table.filter(kept).to_pylist(),
            others["best"].to_pylist(),
            others["size"].to_pylist(),
            strict=True,
        ):
            yield Found(row=row, best_return=best, num_in_group=size)


def return_formula(row: Mapping[str, Any], parameters: Figures) -> str:
    """How a trajectory came to its return, in one line.

    Args:
        row: See :class:`Found`; was weighed.
        parameters: Of the weighting, as its summary has them.
    """
    gamma, coefficient = parameters["gamma"], parameters["repetition_penalty"]
    rewards = [turn["reward"] for turn in row["turns"]]
    discounted, shaped = row["discounted_return"], row["shaped_return"]
    repetition = row["repetition_penalty"]
    # Another grader, or the first turn alone, may have counted: then only the results are known.
    same = abs(sum(gamma**k * r for k, r in enumerate(rewards)) - discounted) < 1e-9
    terms = [f"{gamma:g}^{k}·{reward:g}" for k, reward in enumerate(rewards) if reward]
    first = (" + ".join(terms) or "0") if same else f"{discounted:.4g}"
    norms = [norm for turn in row["turns"] for norm in turn["answer_norms"]]
    distinct = len(set(norms) - {""})
    fits = norms and abs(coefficient * (1 - distinct / len(norms)) - repetition) < 1e-9
    last = f"{coefficient:g}·(1 - {distinct}/{len(norms)})" if fits else f"{repetition:.4g}"
    penalty = applied_format_penalty(row)
    sign = "-" if penalty < 0 else "+"
    return f"R = {first} {sign} {abs(penalty):.4g} - {last} = {shaped:.4g}"


def weight_formula(found: Found, weights: Figures) -> str:
    """How a trajectory came to its importance weight, in one line.

    Args:
        found: Was weighed.
        weights: Summary of the weighting.
    """
    method, beta = weights["parameters"]["method"], weights["beta"]
    weight, value = found.row["importance_weight"], found.row["shaped_return"]
    one_beta = beta is not None and beta["min"] == beta["max"]
    if method not in ("drift", "single_turn") or not one_beta or found.best_return is None:
        return f"w = {weight:.4g} by the weighting {method}"
    best = found.best_return
    return (
        f"w = exp(({value:.4g} - {best:.4g})/{beta['p50']:g}) / its mean over "
        f"{found.num_in_group} trajectories = {weight:.4g}"
    )
