"""Verdict tables: trajectories as another grader sees them, in place of the recorded verdicts.

Rule for rows without a verdict: they are left out as if they had not been sampled. Their group is
weighed without them, and their importance weight is 0. Censored rows (see
:mod:`drift_ray.rescoring.verdicts`) count as the failures that they are as far as they go.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from drift_ray.errors import DataError, StageError
from drift_ray.schema import NUM_TURNS, SOURCE_KEY, VERDICT_SCHEMA
from drift_ray.store import VERDICTS, RunStore


def verdict_name(part: str, name: str) -> str:
    """Name of the verdict part beside a rollout part."""
    return f"{VERDICTS}/{name}/{part.rsplit('/', 1)[1]}"


def verdict_summary_name(name: str) -> str:
    """Name of the summary file, written last."""
    return f"{VERDICTS}/{name}/summary.json"


def read_verdicts(store: RunStore, part: str, name: str, content: bytes) -> pa.Table:
    """The verdicts on a rollout part.

    Args:
        store: The run directory.
        part: Name of the rollout part.
        name: Of the verdict table.
        content: Of the rollout part: see ``CONTENT_KEY``.

    Raises:
        StageError: There are none, or the rollout part has changed since.
        DataError: The verdict part is truncated, foreign or of a newer schema.
    """
    file = verdict_name(part, name)
    if not store.exists(file):
        raise StageError(
            f"There are no verdicts {name!r} on {store.path(part)}: {store.path(file)} is missing.",
            "Run `drift-ray rescore` with that name first, or leave out weighting.verdicts.",
        )
    table = store.read_table(file, VERDICT_SCHEMA)
    if table.schema.metadata.get(SOURCE_KEY) != content:
        raise StageError(
            f"{store.path(file)} judges other trajectories than those that are in "
            f"{store.path(part)} now.",
            "Run `drift-ray rescore` with that name again.",
        )
    return table


def with_verdicts(columns: pa.Table, verdicts: pa.Table, where: str) -> pa.Table:
    """Replace the recorded verdicts of a part.

    Args:
        columns: See :func:`drift_ray.weighting.part.read_columns`.
        verdicts: Columns of ``VERDICT_SCHEMA``, row by row beside them.
        where: What to call the verdicts in an error.

    Returns:
        The same columns, of the rows with a verdict only, each with the turns that count.

    Raises:
        DataError: Rows, or turns, do not match.
    """
    for key in ("prompt_id", "trajectory_index"):
        if not columns[key].equals(verdicts[key]):
            raise DataError(
                f"{where}: column {key!r} differs from that of the rollout part.",
                "Delete this file and run `drift-ray rescore` again.",
            )
    kept = verdicts["has_verdict"]
    old, new = columns.filter(kept), verdicts.filter(kept)
    turns = old["turns"].combine_chunks()
    lengths, num_turns = turns.value_lengths().to_numpy(), new["num_turns"].to_numpy()
    if (num_turns > lengths).any():
        raise DataError(
            f"{where}: column 'num_turns' exceeds the turns of the rollout part.",
            "Delete this file and run `drift-ray rescore` again.",
        )
    starts = np.concatenate([[0], np.cumsum(lengths)])
    step = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    counted = turns.flatten().filter(pa.array(step < np.repeat(num_turns, lengths)))
    fields = {
        "reward": _flat(new["rewards"]),
        "answer_norms": _flat(new["answer_norms"]),
        "format_ok": counted.field("format_ok"),
        "stop_reason": counted.field("stop_reason"),
    }
    offsets = pa.array(np.concatenate([[0], np.cumsum(num_turns)]), pa.int32())
    values = pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
    judged = {
        "turns": pa.ListArray.from_arrays(offsets, values),
        "first_success_turn": new["first_success_turn"],
        "format_penalty": new["format_penalty"],
    }
    return pa.table(
        {name: judged.get(name, old[name]) for name in old.column_names}
    ).replace_schema_metadata(columns.schema.metadata)


def for_all_rows(weights: pa.Table, verdicts: pa.Table) -> pa.Table:
    """A weight table of the rows with a verdict, completed to one row a trajectory of the part.

    Rows without verdict get importance weight 0 and null returns. ``num_turns`` is added: a
    training must not go beyond the turns that count.
    """
    has_verdict = verdicts["has_verdict"].combine_chunks()
    position = np.cumsum(has_verdict.to_numpy(zero_copy_only=False)) - 1
    index = pc.if_else(has_verdict, pa.array(position), pa.scalar(None, pa.int64()))
    columns = {name: weights[name].take(index) for name in weights.column_names}
    columns["importance_weight"] = columns["importance_weight"].fill_null(0.0)
    for key in ("prompt_id", "trajectory_index", NUM_TURNS):
        columns[key] = verdicts[key]
    return pa.table(columns).replace_schema_metadata(weights.schema.metadata)


def _flat(lists: pa.ChunkedArray) -> pa.Array:
    return lists.combine_chunks().flatten()
