"""Trajectories without the turns that no longer count, where verdicts of another grader say so.

A turn that another grader finds correct ends its trajectory. What was sampled after it must not be
learned: the importance weight is that of the shorter trajectory.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from drift_ray.errors import DataError

Ints = npt.NDArray[np.int64]


def cut_turns(table: pa.Table, num_turns: pa.ChunkedArray, where: str) -> pa.Table:
    """Cut trajectories after the last turn that counts.

    Args:
        table: Columns ``token_ids``, ``logprobs`` and ``turns`` with ``token_end``, no list null;
            others are kept.
        num_turns: Turns of each row that count, <= its turns; null: all of them.
        where: What to call these numbers in an error.

    Raises:
        DataError: A row has fewer turns; names it.
    """
    turns = table["turns"].combine_chunks()
    lengths = turns.value_lengths().to_numpy()
    wanted = np.where(num_turns.is_valid().to_numpy(), num_turns.fill_null(0).to_numpy(), lengths)
    impossible = np.flatnonzero((wanted > lengths) | (wanted < 0))
    if len(impossible):
        raise DataError(
            f"{where}, row {impossible[0]}: column 'num_turns' is {wanted[impossible[0]]}, but the "
            f"trajectory has {lengths[impossible[0]]} turns.",
            "Run `drift-ray weigh` again.",
        )
    num_tokens = table["token_ids"].combine_chunks().value_lengths().to_numpy().astype(np.int64)
    shorter = np.flatnonzero((wanted < lengths) & (wanted > 0))
    last = _offsets(lengths)[shorter] + wanted[shorter] - 1
    ends = turns.flatten().field("token_end").to_numpy(zero_copy_only=False)
    num_tokens[shorter] = np.minimum(ends[last], num_tokens[shorter])
    kept = {"turns": wanted, "token_ids": num_tokens, "logprobs": num_tokens}
    for name, keep in kept.items():
        index = table.schema.get_field_index(name)
        lists = _heads(table[name].combine_chunks(), keep)
        table = table.set_column(index, table.schema.field(index), lists)
    return table


def _heads(lists: pa.ListArray, keep: Ints) -> pa.ListArray:
    """The first values of every list."""
    lengths = lists.value_lengths().to_numpy()
    step = np.arange(lengths.sum()) - np.repeat(_offsets(lengths)[:-1], lengths)
    values = lists.flatten().filter(pa.array(step < np.repeat(keep, lengths)))
    offsets = pa.array(_offsets(np.minimum(keep, lengths)), pa.int32())
    return pa.ListArray.from_arrays(offsets, values, type=lists.type)


def _offsets(lengths: npt.NDArray[np.integer]) -> Ints:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
