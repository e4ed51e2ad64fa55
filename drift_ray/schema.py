"""The data contract: Arrow schemas of everything a run keeps, and how records become rows.

Plain Parquet that pandas, DuckDB and ``datasets`` read as it is. The version stands in the file's
metadata; :func:`check_table` refuses what it does not understand.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from drift_ray.errors import DataError
from drift_ray.types import Failure, Trajectory, Turn

SCHEMA_VERSION = 2

CONTENT_KEY = b"drift_ray.content"
"""Metadata of a rollout part: hash of its rows."""
FAILURES_KEY = b"drift_ray.failures"
"""Metadata of a rollout part: the file beside it that holds its failed trajectories, if any."""
SOURCE_KEY = b"drift_ray.source"
"""Metadata of a weight or verdict part: the content of the rollout part it belongs to."""
RECIPE_KEY = b"drift_ray.recipe"
"""Metadata of a weight or verdict part: hash of what, beside its rollout part, it was made from."""

_VERSION_KEY = b"drift_ray.schema_version"
_METADATA = {_VERSION_KEY: str(SCHEMA_VERSION).encode()}

_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
_TURN = pa.struct(
    [
        ("turn_index", pa.int32()),
        ("text", pa.string()),
        ("canonical_text", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("answer_norms", pa.list_(pa.string())),
        ("reward", pa.float64()),
        ("format_ok", pa.bool_()),
        ("stop_reason", pa.string()),
        ("prompt_start", pa.int32()),
        ("token_start", pa.int32()),
        ("token_end", pa.int32()),
    ]
)

TRAJECTORY_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("trajectory_index", pa.int32()),
        ("task", pa.string()),
        ("question", pa.string()),
        ("gold", pa.string()),
        ("messages", pa.list_(_MESSAGE)),
        ("turns", pa.list_(_TURN)),
        # What the engine really saw and sampled; log-probabilities are null on context tokens.
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("first_success_turn", pa.int32()),
        ("format_penalty", pa.float64()),
        ("num_turns", pa.int32()),
        # Rows of this prompt in this part: fewer than were asked for if some failed. A prompt that
        # was topped up has more rows in other parts.
        ("num_in_group", pa.int32()),
        ("end_reason", pa.string()),
        ("seed", pa.int64()),
    ],
    metadata=_METADATA,
)
"""One row a trajectory; see :class:`drift_ray.types.Trajectory` for the meaning of each column."""

FAILURE_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("trajectory_index", pa.int32()),
        ("turn_index", pa.int32()),
        ("cause", pa.string()),
        ("message", pa.string()),
        ("trace", pa.string()),
    ],
    metadata=_METADATA,
)
"""One row a trajectory that could not be completed; see :class:`drift_ray.types.Failure`."""

WEIGHT_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("trajectory_index", pa.int32()),
        ("discounted_return", pa.float64()),
        ("format_penalty", pa.float64()),
        ("repetition_penalty", pa.float64()),
        ("shaped_return", pa.float64()),
        ("importance_weight", pa.float64()),
    ],
    metadata=_METADATA,
)
"""One row a trajectory, in the order of the rollout part of the same file name.

Parts that were made by a verdict table also have :data:`NUM_TURNS`; their returns are null where
there is no verdict."""
NUM_TURNS = "num_turns"
"""Optional column of a weight part, int32: turns that count, null without verdict."""

VERDICT_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("trajectory_index", pa.int32()),
        # False: an answer that decides could not be graded. All columns below are null then.
        ("has_verdict", pa.bool_()),
        ("first_success_turn", pa.int32()),
        # Turns that count: those up to the first correct answer.
        ("num_turns", pa.int32()),
        ("rewards", pa.list_(pa.float64())),
        ("answer_norms", pa.list_(pa.list_(pa.string()))),
        ("format_penalty", pa.float64()),
        # It was ended by an answer that is wrong now: how it would have gone on is not known.
        ("censored", pa.bool_()),
    ],
    metadata=_METADATA,
)
"""One row a trajectory, in the order of the rollout part of the same file name: what another grader
makes of its answers. ``rewards`` and ``answer_norms`` have one entry a turn that counts."""

FLIP_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("trajectory_index", pa.int32()),
        ("turn_index", pa.int32()),
        ("answer", pa.string()),
        ("gold", pa.string()),
        ("was_correct", pa.bool_()),
        ("is_correct", pa.bool_()),
    ],
    metadata=_METADATA,
)
"""One row an answer on which two graders disagree."""


def trajectory_table(trajectories: Sequence[Trajectory]) -> pa.Table:
    """Turn records of whole groups into a table of :data:`TRAJECTORY_SCHEMA`, order kept."""
    num_in_group = Counter(trajectory.prompt_id for trajectory in trajectories)
    rows = [_row(trajectory, num_in_group[trajectory.prompt_id]) for trajectory in trajectories]
    lengths = [len(trajectory.token_ids) for trajectory in trajectories]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), pa.int32())
    columns: dict[str, pa.Array] = {
        "token_ids": pa.ListArray.from_arrays(
            offsets, pa.array(_concat([t.token_ids for t in trajectories], np.int32))
        ),
        "logprobs": pa.ListArray.from_arrays(
            offsets,
            # from_pandas: NaN (not sampled) becomes null.
            pa.array(_concat([t.logprobs for t in trajectories], np.float32), from_pandas=True),
        ),
    }
    for field in TRAJECTORY_SCHEMA:
        if field.name not in columns:
            columns[field.name] = pa.array([row[field.name] for row in rows], field.type)
    table = pa.table(columns).select(TRAJECTORY_SCHEMA.names).cast(TRAJECTORY_SCHEMA)
    return table.replace_schema_metadata({**_METADATA, CONTENT_KEY: content_hash(table)})


def failure_table(failures: Sequence[Failure]) -> pa.Table:
    """Turn records into a table of :data:`FAILURE_SCHEMA`, one row each, order kept."""
    columns = {
        name: [getattr(failure, name) for failure in failures] for name in FAILURE_SCHEMA.names
    }
    return pa.table(columns, schema=FAILURE_SCHEMA)


def check_table(schema: pa.Schema, expected: pa.Schema, where: str) -> None:
    """Refuse a file that is foreign, of a newer version, or lacks a column.

    Raises:
        DataError: Names the file and the version or column.
    """
    version = (schema.metadata or {}).get(_VERSION_KEY)
    if version is None or not version.isdigit():
        raise DataError(
            f"{where} was not written by drift_ray (no schema version in its metadata).",
            "Move it out of the run directory.",
        )
    if int(version) > SCHEMA_VERSION:
        raise DataError(
            f"{where} has schema version {int(version)}; this drift_ray reads up to "
            f"{SCHEMA_VERSION}.",
            "Upgrade drift_ray.",
        )
    for field in expected:
        index = schema.get_field_index(field.name)
        if index < 0 or schema.field(index).type != field.type:
            found = "is missing" if index < 0 else f"is {schema.field(index).type}"
            raise DataError(f"{where}: column {field.name!r} {found}, expected {field.type}.")


def content_hash(table: pa.Table) -> bytes:
    """Hash of a table's rows, as hexadecimal digits."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return hashlib.blake2b(sink.getvalue(), digest_size=16).hexdigest().encode()


def _row(trajectory: Trajectory, num_in_group: int) -> dict[str, object]:
    return {
        "prompt_id": trajectory.prompt_id,
        "trajectory_index": trajectory.trajectory_index,
        "task": trajectory.task,
        "question": trajectory.question,
        "gold": trajectory.gold,
        "messages": [{"role": m.role, "content": m.content} for m in trajectory.messages],
        "turns": [_turn_row(turn) for turn in trajectory.turns],
        "first_success_turn": trajectory.first_success_turn,
        "format_penalty": trajectory.format_penalty,
        "num_turns": len(trajectory.turns),
        "num_in_group": num_in_group,
        "end_reason": trajectory.end_reason.value,
        "seed": trajectory.seed,
    }


def _turn_row(turn: Turn) -> dict[str, object]:
    return {name: getattr(turn, name) for name in (field.name for field in _TURN)}


def _concat(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype)
