"""What another grader's word on single answers makes of whole trajectories.

An episode ends at its first correct answer, whoever judges. So with other verdicts

- an earlier answer may be correct: what comes after it no longer counts. What is left is exactly
  what would have been sampled under the new grader;
- the answer that ended the episode may be wrong: the trajectory is a failure as far as it goes. It
  would have gone on if its turns and actions were not used up. Such rows are *censored*: what they
  would have earned is not known, and counts as nothing;
- an answer may resist grading. If no answer before it is correct, the trajectory has no verdict: it
  is neither a success nor a failure.

Answers that stand behind the first correct one, or in a message behind the answer that was correct
when it was sampled, were never executed and are not judged. Lists are flat, as in Arrow's layout:
all answers of a part, row by row, turn by turn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from drift_ray.config import EnvironmentConfig
from drift_ray.schema import FLIP_SCHEMA, VERDICT_SCHEMA

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answers:
    """The executed answers of a part of R trajectories: N answers in T turns."""

    text: pa.StringArray
    """Shape ``[N]``."""
    turn: Ints
    """Shape ``[N]``: the flat turn of each answer."""
    row: Ints
    """Shape ``[N]``: the trajectory of each answer."""
    turn_row: Ints
    """Shape ``[T]``: the trajectory of each turn."""
    turn_index: Ints
    """Shape ``[T]``: 0-based within the trajectory."""
    gold: pa.StringArray
    """Shape ``[R]``."""

    @classmethod
    def of(cls, table: pa.Table) -> Answers:
        """Those of a table with the columns ``gold`` and ``turns.answers``, none of them null."""
        turns = table["turns"].combine_chunks()
        num_turns = turns.value_lengths().to_numpy()
        answers = turns.flatten().field("answers")
        turn_row = np.repeat(np.arange(len(turns)), num_turns)
        turn = np.repeat(np.arange(len(answers)), answers.value_lengths().to_numpy())
        return cls(
            text=answers.flatten(),
            turn=turn,
            row=turn_row[turn],
            turn_row=turn_row,
            turn_index=np.arange(len(turn_row)) - _offsets(num_turns)[turn_row],
            gold=table["gold"].combine_chunks(),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Grades:
    """A grader's word on each of N answers."""

    correct: Bools
    failed: Bools
    """Whether it could not be graded; then it is not ``correct`` either."""
    normalized: pa.StringArray
    """Null where it could not."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judged:
    """A part of R trajectories under another grader."""

    verdicts: pa.Table
    """Columns of ``VERDICT_SCHEMA``."""
    flips: pa.Table
    """Columns of ``FLIP_SCHEMA``: answers that count and are judged differently."""
    obstacles: Ints
    """The answers, one for each row without a verdict, that prevented it."""


def judge(
    table: pa.Table, answers: Answers, grades: Grades, environment: EnvironmentConfig
) -> Judged:
    """Judge the trajectories of a part by the grades of their answers.

    Args:
        table: Columns ``prompt_id``, ``trajectory_index``, ``gold``, ``first_success_turn``,
            ``format_penalty`` and ``turns`` with ``answers``, ``reward`` and ``format_ok``.
        answers: Its answers.
        grades: Of these answers.
        environment: Budgets under which the trajectories were sampled.
    """
    num_rows, num_answers = table.num_rows, len(answers.row)
    first_correct = _first(grades.correct, answers.row, num_rows)
    first_failed = _first(grades.failed, answers.row, num_rows)
    has_verdict = first_failed >= first_correct
    solved = has_verdict & (first_correct < num_answers)
    counts = has_verdict[answers.row] & (np.arange(num_answers) <= first_correct[answers.row])
    last_turn = np.full(num_rows, len(answers.turn_row))
    last_turn[solved] = answers.turn[first_correct[solved]]
    flat_turn = np.arange(len(answers.turn_row))
    turn_counts = has_verdict[answers.turn_row] & (flat_turn <= last_turn[answers.turn_row])
    num_turns = np.bincount(answers.turn_row[turn_counts], minlength=num_rows)
    success = np.zeros(num_rows, np.int64)
    success[solved] = answers.turn_index[last_turn[solved]] + 1
    censored = has_verdict & ~solved & _would_have_gone_on(table, answers, environment)

    none = ~has_verdict
    reward = (flat_turn == last_turn[answers.turn_row]).astype(np.float64)
    num_in_turn = np.bincount(answers.turn[counts], minlength=len(flat_turn))
    norms = pa.ListArray.from_arrays(
        _arrow_offsets(num_in_turn[turn_counts]), grades.normalized.filter(pa.array(counts))
    )
    turn_offsets, hidden = _arrow_offsets(num_turns), pa.array(none)
    columns = {
        "prompt_id": table["prompt_id"],
        "trajectory_index": table["trajectory_index"],
        "has_verdict": has_verdict,
        "first_success_turn": pa.array(success, pa.int32(), mask=~solved),
        "num_turns": pa.array(num_turns, pa.int32(), mask=none),
        "rewards": pa.ListArray.from_arrays(turn_offsets, reward[turn_counts], mask=hidden),
        "answer_norms": pa.ListArray.from_arrays(turn_offsets, norms, mask=hidden),
        "format_penalty": pa.array(_format_penalty(table, answers, turn_counts), mask=none),
        "censored": pa.array(censored, mask=none),
    }
    return Judged(
        verdicts=pa.table(columns, schema=VERDICT_SCHEMA),
        flips=_flips(table, answers, grades, counts),
        obstacles=first_failed[none],
    )


def _would_have_gone_on(table: pa.Table, answers: Answers, environment: EnvironmentConfig) -> Bools:
    """Rows that ended by success alone: with it gone, the budgets had room for more."""
    num_rows = table.num_rows
    turns_used = np.bincount(answers.turn_row, minlength=num_rows)
    actions_used = np.bincount(answers.row, minlength=num_rows)
    # Where a message may hold several answers, those behind a success were not executed.
    more_to_say = (turns_used < environment.max_turns) | (environment.max_actions_per_turn != 1)
    succeeded = table["first_success_turn"].is_valid().to_numpy()
    going: Bools = succeeded & more_to_say & (actions_used < environment.max_actions_per_traj)
    return going


def _format_penalty(
    table: pa.Table, answers: Answers, turn_counts: Bools
) -> npt.NDArray[np.float64]:
    """The share of the recorded penalty that falls to the turns that count: all cost the same."""
    format_ok = table["turns"].combine_chunks().flatten().field("format_ok")
    unread = ~format_ok.to_numpy(zero_copy_only=False)
    all_unread = np.bincount(answers.turn_row[unread], minlength=table.num_rows)
    counted = np.bincount(answers.turn_row[unread & turn_counts], minlength=table.num_rows)
    penalty: npt.NDArray[np.float64] = table["format_penalty"].to_numpy()
    return penalty * np.where(all_unread > 0, counted / np.maximum(all_unread, 1), 1.0)


def _flips(table: pa.Table, answers: Answers, grades: Grades, counts: Bools) -> pa.Table:
    rewards = table["turns"].combine_chunks().flatten().field("reward")
    # A turn with a reward ends with its correct answer.
    is_last = np.diff(answers.turn, append=-1) != 0
    was_correct = is_last & (rewards.to_numpy(zero_copy_only=False)[answers.turn] > 0)
    flipped = np.flatnonzero(counts & (was_correct != grades.correct))
    row = pa.array(answers.row[flipped])
    columns = {
        "prompt_id": table["prompt_id"].take(row),
        "trajectory_index": table["trajectory_index"].take(row),
        "turn_index": pa.array(answers.turn_index[answers.turn[flipped]], pa.int32()),
        "answer": answers.text.take(pa.array(flipped)),
        "gold": answers.gold.take(row),
        "was_correct": was_correct[flipped],
        "is_correct": grades.correct[flipped],
    }
    return pa.table(columns, schema=FLIP_SCHEMA)


def _first(flags: Bools, row: Ints, num_rows: int) -> Ints:
    """The first flat position of every row that has the flag; past the end where none has."""
    positions = np.flatnonzero(flags)
    first = np.full(num_rows, len(flags))
    np.minimum.at(first, row[positions], positions)
    return first


def _offsets(lengths: npt.NDArray[np.integer]) -> Ints:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _arrow_offsets(lengths: npt.NDArray[np.integer]) -> pa.Int32Array:
    return pa.array(_offsets(lengths), pa.int32())
