"""Rollouts and their importance weights as one compact table of flat arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainingData:
    """The trajectories that carry loss; tokens of all of them back to back.

    Sample ``i`` owns ``[offsets[i], offsets[i + 1])`` of the flat arrays.
    """

    token_ids: npt.NDArray[np.int32]
    """Shape ``[num_tokens]``: context and sampled tokens, as the engine saw them."""
    offsets: npt.NDArray[np.int64]
    """Shape ``[num_samples + 1]``."""
    loss_mask: npt.NDArray[np.bool_]
    """Shape ``[num_tokens]``: the tokens whose negative log-likelihood is minimised."""
    ref_logprobs: npt.NDArray[np.float32]
    """Shape ``[num_tokens]``: log π_ref wherever ``loss_mask`` is set, else maybe NaN; NaN in all
    of a sample whose engine did not tell."""
    importance_weight: npt.NDArray[np.float64]
    """Shape ``[num_samples]``, not 0; below it the likelihood is lowered (``group_advantage``)."""
    num_zero_weight: int
    """Trajectories left out because their importance weight is 0."""
    num_without_loss: int
    """Trajectories left out because they hold no sampled token to learn from."""
    left_out_weight_frac: float
    """Share of all importance weight, by size, that the trajectories left out had."""

    def __len__(self) -> int:
        return len(self.importance_weight)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each sample, shape ``[num_samples]``."""
        return np.diff(self.offsets)

    def fingerprint(self) -> str:
        """Hash of everything that shapes the gradients of these samples."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.token_ids, self.offsets, self.loss_mask, self.importance_weight):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


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


def load_training_data(
    store: RunStore, *, weighting: str, loss_turns: Literal["last", "all"]
) -> TrainingData:
    """Read every rollout part beside its weights.

    Trajectories of importance weight 0 are left out: they add nothing to the loss, and a batch
    should be made of samples that do. So are those without any loss token.

    Args:
        store: The run directory.
        weighting: Folder under ``weights/``.
        loss_turns: Whether the last assistant turn carries loss, or all of them. A turn's
            prefill is context.

    Raises:
        StageError: An input is missing, or every weight is zero.
        DataError: Parts and weights do not match, or hold impossible values; names file and row.
    """
    parts = [
        _read_part(store, name, f"{WEIGHTS}/{weighting}/{name.rsplit('/', 1)[1]}", loss_turns)
        for name in input_parts(store, weighting)
    ]
    all_weights = _concat(part.importance_weight for part in parts)
    parts = [part.only(part.carries_loss) for part in parts]
    weight = _concat(part.importance_weight for part in parts)
    if not len(weight):
        raise StageError(
            f"All {len(all_weights)} trajectories have importance weight 0 or no sampled token: "
            "there is nothing to train on.",
            "Set weighting.all_failed=keep, draw more trajectories a prompt (rollout.group_size), "
            "or check the task's grader.",
        )
    num_zero = int((all_weights == 0).sum())
    lengths = _concat(part.lengths for part in parts)
    return TrainingData(
        token_ids=_concat(part.token_ids for part in parts),
        offsets=_offsets(lengths),
        loss_mask=_concat(part.loss_mask for part in parts),
        ref_logprobs=_concat(part.logprobs for part in parts),
        importance_weight=weight,
        num_zero_weight=num_zero,
        num_without_loss=len(all_weights) - num_zero - len(weight),
        left_out_weight_frac=float(1 - np.abs(weight).sum() / np.abs(all_weights).sum()),
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Part:
    lengths: npt.NDArray[np.int64]
    token_ids: npt.NDArray[np.int32]
    loss_mask: npt.NDArray[np.bool_]
    logprobs: npt.NDArray[np.float32]
    importance_weight: npt.NDArray[np.float64]

    @property
    def carries_loss(self) -> npt.NDArray[np.bool_]:
        """Shape ``[num_rows]``."""
        num_before = np.concatenate([[0], np.cumsum(self.loss_mask)])
        num_loss_tokens = np.diff(num_before[_offsets(self.lengths)])
        return (self.importance_weight != 0) & (num_loss_tokens > 0)

    def only(self, rows: npt.NDArray[np.bool_]) -> _Part:
        tokens = np.repeat(rows, self.lengths)
        return _Part(
            lengths=self.lengths[rows],
            token_ids=self.token_ids[tokens],
            loss_mask=self.loss_mask[tokens],
            logprobs=self.logprobs[tokens],
            importance_weight=self.importance_weight[rows],
        )


def _read_part(
    store: RunStore, name: str, weights_name: str, loss_turns: Literal["last", "all"]
) -> _Part:
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
    position = np.arange(len(logprobs)) - np.repeat(_offsets(lengths)[:-1], lengths)
    kept = position >= np.repeat(begin, lengths)
    return _Part(
        lengths=lengths - begin,
        token_ids=_list_values(table, "token_ids").to_numpy(zero_copy_only=False)[kept],
        loss_mask=turns.mask(len(logprobs))[kept],
        logprobs=logprobs[kept],
        importance_weight=weight,
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Turns:
    """The assistant turns of a part that carry loss; one entry each."""

    row: npt.NDArray[np.int64]
    prompt_start: npt.NDArray[np.int64]
    """Within the row."""
    begin: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    """Sampled tokens, in the flat arrays of all rows."""

    def mask(self, num_tokens: int) -> npt.NDArray[np.bool_]:
        """Which of all tokens the turns sampled."""
        edges = np.zeros(num_tokens + 1, dtype=np.int32)
        np.add.at(edges, self.begin, 1)
        np.add.at(edges, self.end, -1)
        return np.cumsum(edges[:-1]) > 0


def _loss_turns(
    table: pa.Table,
    lengths: npt.NDArray[np.int64],
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
    offset = _offsets(lengths)[row]
    return _Turns(
        row=row[which],
        prompt_start=prompt_start[which],
        begin=(offset + begin)[which],
        end=(offset + end)[which],
    )


def _check_logprobs(
    logprobs: npt.NDArray[np.float32],
    turns: _Turns,
    lengths: npt.NDArray[np.int64],
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


def _check(valid: npt.NDArray[np.bool_], where: str, column: str, hint: str = "") -> None:
    """Refuse a part unless every row's value of a column is valid."""
    if not valid.all():
        raise DataError(
            f"{where}, row {int(np.argmin(valid))}: column {column!r} holds an impossible value.",
            hint or "Delete this file, then run `drift-ray rollout` and `drift-ray weigh` again.",
        )


def _list_lengths(table: pa.Table, name: str, where: str) -> npt.NDArray[np.int64]:
    lengths = table[name].combine_chunks().value_lengths()
    _check(lengths.is_valid().to_numpy(zero_copy_only=False), where, name)
    return lengths.to_numpy(zero_copy_only=False).astype(np.int64)


def _list_values(table: pa.Table, name: str) -> pa.Array:
    return table[name].combine_chunks().flatten()


def _offsets(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _concat(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate(list(arrays))
