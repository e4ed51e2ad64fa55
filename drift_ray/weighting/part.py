"""One rollout part: the columns that returns are made of, checked, and its weight table."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from drift_ray.config import WeightingConfig
from drift_ray.errors import DataError
from drift_ray.schema import CONTENT_KEY, TRAJECTORY_SCHEMA, WEIGHT_SCHEMA
from drift_ray.store import WEIGHTS, RunStore
from drift_ray.types import StopReason
from drift_ray.weighting.groups import Bools, Floats
from drift_ray.weighting.returns import trajectory_returns, turns_with
from drift_ray.weighting.weightings import get_weighting

# Texts and tokens, nearly all of a part, stay on disk.
_COLUMNS = [
    "prompt_id",
    "trajectory_index",
    "first_success_turn",
    "format_penalty",
    *(
        f"turns.list.element.{name}"
        for name in ("reward", "answer_norms", "format_ok", "stop_reason")
    ),
]
_RETURN_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.dictionary(pa.int32(), pa.string())),
        *(field for field in WEIGHT_SCHEMA if field.name not in ("prompt_id", "importance_weight")),
        ("first_success_turn", pa.int32()),
        ("truncated", pa.bool_()),
        ("format_failed", pa.bool_()),
    ]
)


def read_columns(store: RunStore, name: str) -> pa.Table:
    """The columns of a rollout part that weights depend on.

    Raises:
        DataError: The part is truncated, foreign or of a newer schema, or a value is missing or
            not finite; names part, row and column.
    """
    table = store.read_table(name, TRAJECTORY_SCHEMA, _COLUMNS)
    where = store.path(name)
    if CONTENT_KEY not in table.schema.metadata:
        raise DataError(
            f"{where} says nothing of its content in its metadata.",
            "Move it out of the run directory.",
        )
    check_columns(table, where)
    return table


def check_columns(table: pa.Table, where: str) -> None:
    """Refuse missing values, and rewards and penalties that are no numbers.

    Raises:
        DataError: Names part, row, column and value.
    """
    ids = table["prompt_id"]
    check_values(pc.fill_null(pc.not_equal(ids, ""), False), ids, where, "prompt_id")
    for name in ("trajectory_index", "format_penalty"):
        check_values(_finite(table[name]), table[name], where, name)
    turns = table["turns"].combine_chunks()
    check_values(turns.is_valid(), turns, where, "turns")
    values = turns.flatten()
    rows = np.repeat(np.arange(len(turns)), turns.value_lengths().to_numpy())
    reward, norms = values.field("reward"), values.field("answer_norms")
    check_values(_finite(reward), reward, where, "turns.reward", rows)
    check_values(norms.is_valid(), norms, where, "turns.answer_norms", rows)
    if norms.flatten().null_count:
        rows = np.repeat(rows, norms.value_lengths().to_numpy())
        check_values(norms.flatten().is_valid(), norms.flatten(), where, "turns.answer_norms", rows)
    for name in ("format_ok", "stop_reason"):
        column = values.field(name)
        check_values(column.is_valid(), column, where, f"turns.{name}", rows)


def check_values(
    valid: pa.Array | pa.ChunkedArray,
    column: pa.Array | pa.ChunkedArray,
    where: str,
    name: str,
    rows: npt.NDArray[np.int64] | None = None,
) -> None:
    """Refuse a part unless all values of a column are valid.

    Args:
        valid: Which are.
        column: The values.
        where: What to call the part.
        name: What to call the column.
        rows: The row of each value; they are in order when omitted.

    Raises:
        DataError: Names part, row, column and value.
    """
    index = pc.index(valid, False).as_py()
    if index >= 0:
        row = index if rows is None else int(rows[index])
        raise DataError(
            f"{where}, row {row}: column {name!r} is {column[index].as_py()!r}.",
            "Delete this part, then run `drift-ray rollout` and `drift-ray weigh` again.",
        )


def return_table(table: pa.Table, config: WeightingConfig) -> pa.Table:
    """What weights and their summary are made of: one row a trajectory, in the order of the part.

    Args:
        table: Columns that :func:`check_columns` found in order.
        config: Discount, penalties, and whether the first turn alone counts.

    Returns:
        The columns of the weight table but the weight; ``first_success_turn`` (0 = never, within
        the turns that count); whether a turn was ``truncated`` by its token limit, and whether one
        ``format_failed``.
    """
    first_turn_only = get_weighting(config.method).first_turn_only
    returns = trajectory_returns(
        table,
        gamma=config.gamma,
        repetition_coefficient=config.repetition_penalty,
        first_turn_only=first_turn_only,
    )
    success = table["first_success_turn"].fill_null(0).to_numpy()
    if first_turn_only:
        success = np.where(success == 1, success, 0)
    turns = table["turns"].combine_chunks()
    offsets, values = turns.offsets.to_numpy(), turns.values
    cut = pc.equal(values.field("stop_reason"), StopReason.LENGTH.value)
    unread = pc.invert(values.field("format_ok"))
    columns = {
        "prompt_id": table["prompt_id"].combine_chunks().dictionary_encode(),
        "trajectory_index": table["trajectory_index"],
        **returns,
        "first_success_turn": success,
        "truncated": turns_with(_bools(cut), offsets) > 0,
        "format_failed": turns_with(_bools(unread), offsets) > 0,
    }
    return pa.table([columns[name] for name in _RETURN_SCHEMA.names], schema=_RETURN_SCHEMA)


def weight_table(
    returns: pa.Table, importance_weight: Floats, metadata: dict[bytes, bytes]
) -> pa.Table:
    """Columns of ``WEIGHT_SCHEMA``, rows as in the part.

    Args:
        returns: See :func:`return_table`.
        importance_weight: Shape ``[N]``.
        metadata: Content of the rollout part, and the recipe.
    """
    columns = {name: returns[name] for name in WEIGHT_SCHEMA.names if name != "importance_weight"}
    table = pa.table({**columns, "importance_weight": importance_weight}).cast(WEIGHT_SCHEMA)
    return table.replace_schema_metadata({**WEIGHT_SCHEMA.metadata, **metadata})


def weight_name(part: str, config: WeightingConfig) -> str:
    """Name of the weight part beside a rollout part."""
    return f"{WEIGHTS}/{config.name}/{part.rsplit('/', 1)[1]}"


def is_committed(
    store: RunStore, name: str, schema: pa.Schema, metadata: dict[bytes, bytes]
) -> bool:
    """Whether a part beside a rollout part is there, whole, and made of the same."""
    if not store.exists(name):
        return False
    try:
        found = store.check_parts([name], schema)[name]
    except DataError:
        return False  # it will be written anew
    return all(found.get(key) == value for key, value in metadata.items())


def content_of(columns: pa.Table) -> bytes:
    """Hash of the rollout part that columns were read from."""
    content: bytes = columns.schema.metadata[CONTENT_KEY]
    return content


def _finite(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return pc.fill_null(pc.is_finite(column), False)


def _bools(array: pa.Array) -> Bools:
    flags: Bools = array.to_numpy(zero_copy_only=False)
    return flags.astype(np.bool_)
