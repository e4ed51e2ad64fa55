"""What a trajectory is worth.

    shaped return = Σ_k γ^(k-1)·r_k  +  format penalty  -  λ·(1 - distinct/total)

(DRIFT, arXiv 2605.31455.) Lists have no common length, so they come in Arrow's layout: the flat
values of all rows, and ``offsets`` of shape ``[num_rows + 1]``; row i is
``values[offsets[i]:offsets[i + 1]]``. Empty rows are fine and so are offsets that do not start at
zero, as those of a sliced array.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Floats = npt.NDArray[np.float64]
Offsets = npt.NDArray[np.integer]


def discounted_return(rewards: Floats, offsets: Offsets, *, gamma: float) -> Floats:
    """Σ_k γ^(k-1)·r_k of every row, 0 for an empty one.

    Args:
        rewards: Flat, one a turn.
        offsets: Where the turns of each row begin and end.
        gamma: Discount per turn, in [0, 1].
    """
    lengths = np.diff(offsets)
    step = np.arange(offsets[0], offsets[-1]) - np.repeat(offsets[:-1], lengths)
    discounted = gamma**step * rewards[offsets[0] : offsets[-1]]
    sums = np.bincount(_rows(offsets), weights=discounted, minlength=len(lengths))
    return sums.astype(np.float64)


def repetition_penalty(answer_norms: pa.Array, offsets: Offsets, *, coefficient: float) -> Floats:
    """λ·(1 - distinct/total) of every row, 0 for an empty one.

    Args:
        answer_norms: Flat strings: the normalised answers. Empty ones count in the total only.
        offsets: Where the answers of each row begin and end.
        coefficient: λ.
    """
    total = np.diff(offsets)
    used = answer_norms.slice(offsets[0], offsets[-1] - offsets[0]).dictionary_encode()
    codes = used.indices.to_numpy(zero_copy_only=False)
    spelled = pc.binary_length(used.dictionary).to_numpy()[codes] > 0
    # One integer stands for (row, answer): sorted, distinct ones are those unlike the one before.
    # (np.unique of NumPy 2.3 takes fifteen times as long.)
    pairs = np.sort(_rows(offsets)[spelled] * len(used.dictionary) + codes[spelled])
    first = pairs[np.diff(pairs, prepend=-1) > 0] // max(len(used.dictionary), 1)
    distinct = np.bincount(first, minlength=len(total))
    return coefficient * np.where(total > 0, 1.0 - distinct / np.maximum(total, 1), 0.0)


def shaped_return(discounted: Floats, format_penalty: Floats, repetition: Floats) -> Floats:
    """Discounted return plus format penalty (<= 0) minus repetition penalty (>= 0)."""
    return discounted + format_penalty - repetition


def trajectory_returns(
    table: pa.Table, *, gamma: float, repetition_coefficient: float, first_turn_only: bool = False
) -> dict[str, Floats]:
    """The return and its parts for every row of a trajectory table.

    Args:
        table: Columns ``turns`` (with ``reward``, ``answer_norms`` and, for ``first_turn_only``,
            ``format_ok``) and ``format_penalty``.
        gamma: Discount per turn.
        repetition_coefficient: λ of the repetition penalty.
        first_turn_only: As if every trajectory had ended after its first turn.

    Returns:
        The columns ``discounted_return``, ``format_penalty``, ``repetition_penalty`` and
        ``shaped_return`` of the weight table, each of shape ``[num_rows]``.
    """
    turns = table["turns"].combine_chunks()
    penalty = table["format_penalty"].to_numpy()
    if first_turn_only:
        penalty = penalty * _first_turn_share(turns)
        turns = _first_turns(turns)
    norms = turns.values.field("answer_norms")
    turn_offsets = turns.offsets.to_numpy()
    # Lists in lists: the answers of a trajectory begin where those of its first turn do.
    answer_offsets = norms.offsets.to_numpy()[turn_offsets]
    rewards = turns.values.field("reward").to_numpy(zero_copy_only=False)
    discounted = discounted_return(rewards, turn_offsets, gamma=gamma)
    repetition = repetition_penalty(
        norms.values, answer_offsets, coefficient=repetition_coefficient
    )
    return {
        "discounted_return": discounted,
        "format_penalty": penalty,
        "repetition_penalty": repetition,
        "shaped_return": shaped_return(discounted, penalty, repetition),
    }


def turns_with(flags: npt.NDArray[np.bool_], offsets: Offsets) -> npt.NDArray[np.int64]:
    """How many turns of every row have a flag.

    Args:
        flags: Flat, one a turn.
        offsets: Where the turns of each row begin and end.
    """
    used = flags[offsets[0] : offsets[-1]]
    return np.bincount(_rows(offsets)[used], minlength=len(offsets) - 1)


def _first_turn_share(turns: pa.ListArray) -> Floats:
    """Share of a row's format penalty that its first turn brought: all such turns cost the same."""
    offsets = turns.offsets.to_numpy()
    failed = ~turns.values.field("format_ok").to_numpy(zero_copy_only=False)
    has_turns = np.diff(offsets) > 0
    first = np.zeros(len(turns))
    first[has_turns] = failed[offsets[:-1][has_turns]]
    return first / np.maximum(turns_with(failed, offsets), 1)


def _first_turns(turns: pa.ListArray) -> pa.ListArray:
    lengths = np.diff(turns.offsets.to_numpy())
    first = turns.offsets.to_numpy()[:-1][lengths > 0]
    offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, 1))]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, turns.values.take(pa.array(first)))


def _rows(offsets: Offsets) -> npt.NDArray[np.int64]:
    """The row of every flat value."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
