"""One rollout part beside its weights: which tokens of it are trained on, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from drift_ray.errors import DataError, StageError
from drift_ray.schema import NUM_TURNS, TRAJECTORY_SCHEMA, WEIGHT_SCHEMA
from drift_ray.store import ROLLOUTS, WEIGHTS, RunStore
from drift_ray.training.cut import cut_turns

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

_KEYS = ["prompt_id", "trajectory_index"]
_TRAJECTORY_COLUMNS = [
    *_KEYS,
    "token_ids",
    "logprobs",
    # Three integers of each turn; its texts stay on disk.
    "turns.list.element.prompt_start",
    "turns.list.element.token_start",
    "turns.list.element.token_end",
]
_WEIGHT_COLUMNS = [*_KEYS, "importance_weight", NUM_TURNS]
_WEIGH_AGAIN = "Run `drift-ray weigh` again."


def input_parts(store: RunStore, weighting: str) -> list[str]:
    """Names of all rollout parts, each of which has its weights.

    Args:
        store: The run directory.
        weighting: Folder under ``weights/``.

    Raises:
        StageError: There are no rollouts, or a part has not been weighed.
    """
    parts = store.parts(ROLLOUTS)
    if not parts:
        raise StageError(
            f"There are no rollouts to train on in {store.path(ROLLOUTS)}.",
            "Run `drift-ray rollout` first.",
        )
    weighed = {name.rsplit("/", 1)[1] for name in store.parts(f"{WEIGHTS}/{weighting}")}
    missing = [part for part in parts if part.rsplit("/", 1)[1] not in weighed]
    if missing:
        raise StageError(
            f"{len(missing)} of {len(parts)} rollout parts have no weights in "
            f"{store.path(f'{WEIGHTS}/{weighting}')}; the first is {missing[0]}.",
            "Run `drift-ray weigh` first.",
        )
    return parts


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SamplePart:
    """Trajectories of one part, tokens back to back; only those from which a sample is made."""

    prompt_id: pa.Array
    """Shape ``[num_rows]``, strings."""
    row: Ints
    """Shape ``[num_rows]``: where it stands in the part."""
    length: Ints
    """Shape ``[num_rows]``: tokens of each."""
    importance_weight: npt.NDArray[np.float64]
    """Shape ``[num_rows]``, finite."""
    token_ids: npt.NDArray[np.int32]
    """Shape ``[num_tokens]``, as the two below."""
    loss_mask: Bools
    ref_logprobs: npt.NDArray[np.float32]

    @property
    def num_loss_tokens(self) -> Ints:
        """Shape ``[num_rows]``."""
        num_before = np.concatenate([[0], np.cumsum(self.loss_mask)])
        return np.diff(num_before[offsets_of(self.length)])

    def only(self, rows: Bools) -> SamplePart:
        """Some of the trajectories, order kept."""
        tokens = np.repeat(rows, self.length)
        return SamplePart(
            prompt_id=self.prompt_id.filter(pa.array(rows)),
            row=self.row[rows],
            length=self.length[rows],
            importance_weight=self.importance_weight[rows],
            token_ids=self.token_ids[tokens],
            loss_mask=self.loss_mask[tokens],
            ref_logprobs=self.ref_logprobs[tokens],
        )


def read_part(
    store: RunStore,
    name: str,
    *,
    weighting: str,
    loss_turns: Literal["last", "all"],
    max_context_tokens: int | None = None,
) -> SamplePart:
    """Read a rollout part beside its weights, only the columns that are needed.

    Args:
        store: The run directory.
        name: Of the rollout part.
        weighting: Folder under ``weights/``.
        loss_turns: Whether the last assistant turn carries loss, or all of them. A turn's
            prefill is context.
        max_context_tokens: Tokens kept before a trajectory's first loss token, >= 1; the older
            ones are left out. None: all are kept.

    Raises:
        DataError: Part and weights do not match, or hold impossible values; names file and row.
    """
    weights_name = f"{WEIGHTS}/{weighting}/{name.rsplit('/', 1)[1]}"
    table = store.read_table(name, TRAJECTORY_SCHEMA, columns=_TRAJECTORY_COLUMNS)
    weights = store.read_table(weights_name, WEIGHT_SCHEMA, columns=_WEIGHT_COLUMNS)
    where, weights_where = store.path(name), store.path(weights_name)
    _check_same_rows(table, weights, where, weights_where)
    weight = weights["importance_weight"].to_numpy()
    _check(np.isfinite(weight), weights_where, "importance_weight", _WEIGH_AGAIN)

    lengths = _list_lengths(table, "token_ids", where)
    _check(lengths == _list_lengths(table, "logprobs", where), where, "logprobs")
    if NUM_TURNS in weights.column_names:
        _list_lengths(table, "turns", where)
        table = cut_turns(table, weights[NUM_TURNS], weights_where)
        lengths = _list_lengths(table, "token_ids", where)
    logprobs = _list_values(table, "logprobs").to_numpy(zero_copy_only=False)
    turns = _loss_turns(table, lengths, where, loss_turns)
    _check_logprobs(logprobs, turns, lengths, where)
    begin = np.zeros(len(lengths), np.int64)
    begin[turns.row] = turns.prompt_start
    loss_mask = turns.mask(len(logprobs))
    if max_context_tokens is not None:
        begin = np.maximum(begin, _first_loss(loss_mask, lengths) - max_context_tokens)
    position = np.arange(len(logprobs)) - np.repeat(offsets_of(lengths)[:-1], lengths)
    kept = position >= np.repeat(begin, lengths)
    return SamplePart(
        prompt_id=table["prompt_id"].combine_chunks(),
        row=np.arange(len(lengths)),
        length=lengths - begin,
        importance_weight=weight,
        token_ids=_list_values(table, "token_ids").to_numpy(zero_copy_only=False)[kept],
        loss_mask=loss_mask[kept],
        ref_logprobs=logprobs[kept],
    )


def offsets_of(lengths: Ints) -> Ints:
    """Where each of some lists begins that lie back to back, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _first_loss(loss_mask: Bools, lengths: Ints) -> Ints:
    """Position of each row's first loss token within the row; 0 for a row without any."""
    positions = np.flatnonzero(loss_mask)
    offsets = offsets_of(lengths)
    nearest = np.searchsorted(positions, offsets[:-1])
    first = np.append(positions, len(loss_mask))[nearest]
    return np.where(first < offsets[1:], first - offsets[:-1], 0)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Turns:
    """The assistant turns of a part that carry loss; one entry each."""

    row: Ints
    prompt_start: Ints
    """Within the row."""
    begin: Ints
    end: Ints
    """Sampled tokens, in the flat arrays of all rows."""

    def mask(self, num_tokens: int) -> Bools:
        """Which of all tokens the turns sampled."""
        edges = np.zeros(num_tokens + 1, dtype=np.int32)
        np.add.at(edges, self.begin, 1)
        np.add.at(edges, self.end, -1)
        return np.cumsum(edges[:-1]) > 0


def _loss_turns(
    table: pa.Table,
    lengths: Ints,
    where: str,
    loss_turns: Literal["last", "all"],
) -> _Turns:
    """The last or all assistant turns of every row."""
    num_turns = _list_lengths(table, "turns", where)
    turns = _list_values(table, "turns")
    prompt_start, begin, end = (
        turns.field(name).to_numpy(zero_copy_only=False)
        for name in ("prompt_start", "token_start", "token_end")
    )
    row = np.repeat(np.arange(len(num_turns)), num_turns)
    # A sequence's first token has no context, so no policy has a probability for it.
    inside = (prompt_start >= 0) & (prompt_start < begin) & (begin <= end) & (end <= lengths[row])
    _check(~np.isin(np.arange(len(num_turns)), row[~inside]), where, "turns")
    if loss_turns == "all" and prompt_start.any():
        raise DataError(
            f"{where}, row {int(row[np.argmax(prompt_start > 0)])}: its turns were sampled after "
            "histories that were rendered anew, so they do not form one sequence.",
            "Train with training.loss_turns=last, or sample with model.history=append.",
        )
    which = np.arange(len(row))
    if loss_turns == "last":
        which = np.cumsum(num_turns)[num_turns > 0] - 1
    offset = offsets_of(lengths)[row]
    return _Turns(
        row=row[which],
        prompt_start=prompt_start[which],
        begin=(offset + begin)[which],
        end=(offset + end)[which],
    )


def _check_logprobs(
    logprobs: npt.NDArray[np.float32],
    turns: _Turns,
    lengths: Ints,
    where: str,
) -> None:
    """Refuse infinite ones, and turns that have some but not all.

    None at all is possible: some servers do not tell them. Context tokens never have any.
    """
    rows = np.repeat(np.arange(len(lengths)), lengths)
    num_known = np.concatenate([[0], np.cumsum(~np.isnan(logprobs))])
    known = num_known[turns.end] - num_known[turns.begin]
    torn = turns.row[(known > 0) & (known < turns.end - turns.begin)]
    bad = np.concatenate([rows[np.isinf(logprobs)], torn])
    _check(~np.isin(np.arange(len(lengths)), bad), where, "logprobs")


def _check_same_rows(table: pa.Table, weights: pa.Table, where: str, weights_where: str) -> None:
    if table.num_rows != weights.num_rows:
        raise DataError(
            f"{weights_where} has {weights.num_rows} rows, but {where} has {table.num_rows}.",
            _WEIGH_AGAIN,
        )
    for key in _KEYS:
        same = pc.fill_null(pc.equal(table[key], weights[key]), False).to_numpy()
        if not same.all():
            row = int(np.argmin(same))
            raise DataError(
                f"{weights_where}, row {row}: {key} is {weights[key][row].as_py()!r}, but "
                f"{where} has {table[key][row].as_py()!r} there.",
                _WEIGH_AGAIN,
            )


def _check(valid: Bools, where: str, column: str, hint: str = "") -> None:
    """Refuse a part unless every row's value of a column is valid."""
    if not valid.all():
        raise DataError(
            f"{where}, row {int(np.argmin(valid))}: column {column!r} holds an impossible value.",
            hint or "Delete this file, then run `drift-ray rollout` and `drift-ray weigh` again.",
        )


def _list_lengths(table: pa.Table, name: str, where: str) -> Ints:
    lengths = table[name].combine_chunks().value_lengths()
    _check(lengths.is_valid().to_numpy(zero_copy_only=False), where, name)
    return lengths.to_numpy(zero_copy_only=False).astype(np.int64)


def _list_values(table: pa.Table, name: str) -> pa.Array:
    return table[name].combine_chunks().flatten()
