"""What a model solved and what that took, from its trajectories alone.

Every rate carries the counts it was made of and a 95 % interval clustered by prompt (see
:mod:`drift_ray.evaluation.intervals`). Trajectories that failed are no part of any rate: they are
counted, and how many are missing stands beside the rates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from drift_ray.errors import DataError
from drift_ray.evaluation.intervals import clustered_interval, ratio_interval

Ints = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]


def success_metrics(
    prompt_ids: npt.ArrayLike,
    first_success_turn: Ints,
    num_turns: Ints,
    *,
    max_turns: int,
) -> dict[str, Any]:
    """What was solved, turn by turn.

    Args:
        prompt_ids: Shape ``[N]``, N >= 1; the clusters of the intervals.
        first_success_turn: Shape ``[N]``, 1-based, below 1 = never.
        num_turns: Shape ``[N]``, turns played; no turn follows a success.
        max_turns: The turns to report; later ones are left out.

    Returns:
        Ready for JSON: ``num_prompts``, ``num_trajectories``, ``max_turns`` and the lists

        - ``success_at``, k = 1…max_turns: ``k``, ``num_correct`` and ``estimate``: the share of the
          trajectories solved within k turns. With several samples a prompt that is the unbiased
          estimate of one sample's success, not of the best of them;
        - ``per_turn``, 1…max_turns: ``num_attempts``, ``num_correct`` and their ``accuracy``;
        - ``correction_rate``, turns 2…max_turns: ``num_wrong_before`` (reached the turn, hence
          wrong so far), ``num_corrected`` and their ``rate``.

        Each row has the limits ``low`` and ``high`` of its rate; a rate of nothing is None, and so
        are its limits.
    """
    prompts, codes = np.unique(np.asarray(prompt_ids), return_inverse=True)
    success_at, per_turn, corrections = [], [], []
    for turn in range(1, max_turns + 1):
        within = (first_success_turn >= 1) & (first_success_turn <= turn)
        success_at.append(
            {"k": turn, "num_correct": int(within.sum()), **_rate(within, codes, "estimate")}
        )
        reached = num_turns >= turn
        right = (first_success_turn == turn)[reached]
        num_attempts, num_correct = len(right), int(right.sum())
        rate = _rate(right, codes[reached], "rate")
        per_turn.append(
            {
                "turn": turn,
                "num_attempts": num_attempts,
                "num_correct": num_correct,
                "accuracy": rate["rate"],
                "low": rate["low"],
                "high": rate["high"],
            }
        )
        if turn > 1:
            corrections.append(
                {
                    "turn": turn,
                    "num_wrong_before": num_attempts,
                    "num_corrected": num_correct,
                    **rate,
                }
            )
    return {
        "num_prompts": len(prompts),
        "num_trajectories": len(num_turns),
        "max_turns": max_turns,
        "success_at": success_at,
        "per_turn": per_turn,
        "correction_rate": corrections,
    }


def repeated_turns(answer_norms: pa.Array, answer_offsets: Ints, turn_offsets: Ints) -> Bools:
    """Whether a turn says nothing new: it answers, and an earlier turn gave each of its answers.

    Args:
        answer_norms: Flat normalised answers of all turns of all trajectories.
        answer_offsets: Shape ``[num_turns + 1]``: where the answers of each turn begin and end.
        turn_offsets: Shape ``[num_trajectories + 1]``: the same for the turns of each trajectory.

    Returns:
        Shape ``[num_turns]``.
    """
    num_turns = len(answer_offsets) - 1
    counts = np.diff(answer_offsets)
    turn = np.repeat(np.arange(num_turns), counts)
    trajectory = np.repeat(np.arange(len(turn_offsets) - 1), np.diff(turn_offsets))[turn]
    used = answer_norms.slice(answer_offsets[0], len(turn)).dictionary_encode()
    pair = trajectory * len(used.dictionary) + used.indices.to_numpy(zero_copy_only=False)
    # np.unique reports where a pair occurs first, and turns stand in order.
    _, first, which = np.unique(pair, return_index=True, return_inverse=True)
    old = turn[first][which] < turn
    return (counts > 0) & (np.bincount(turn, weights=old, minlength=num_turns) == counts)


def evaluation_metrics(
    table: pa.Table,
    *,
    max_turns: int,
    num_expected: int | None = None,
    failure_causes: Iterable[str] = (),
) -> dict[str, Any]:
    """All metrics of a set of trajectories.

    Args:
        table: At least one row, columns ``prompt_id``, ``first_success_turn`` (null = never),
            ``num_turns`` and ``turns`` (with ``answer_norms``, ``format_ok`` and token spans).
        max_turns: The turns to report success for.
        num_expected: Trajectories that were asked for; as many as there are when omitted.
        failure_causes: One for each trajectory that failed.

    Returns:
        :func:`success_metrics`, and

        - ``repeated_answers``: of turns >= 2, those that only repeat (:func:`repeated_turns`);
        - ``format_failures``: of all turns, those without a parseable answer; both with
          ``num_turns`` (how many it is a share of), ``num``, ``rate``, ``low`` and ``high``;
        - ``tokens_per_solved``: ``num_tokens`` sampled in all trajectories, ``num_solved`` of these
          and their ratio ``estimate`` with ``low`` and ``high``; None where there is none;
        - ``missing``: ``num_expected``, ``num_missing`` of these, and the ``failures`` by cause.

    Raises:
        DataError: The table is empty.
    """
    if not table.num_rows:
        raise DataError("no trajectories to evaluate", hint="look into the stage's failures folder")
    turns = table["turns"].combine_chunks()
    turn_offsets = turns.offsets.to_numpy()
    begin, end = int(turn_offsets[0]), int(turn_offsets[-1])
    played = turns.values.slice(begin, end - begin)
    norms = pc.struct_field(played, "answer_norms")
    repeated = repeated_turns(norms.values, norms.offsets.to_numpy(), turn_offsets)
    num_turns = np.diff(turn_offsets)
    _, codes = np.unique(table["prompt_id"].to_numpy(), return_inverse=True)
    clusters = np.repeat(codes, num_turns)
    # Turns of a trajectory follow each other; all but its first come later.
    later = np.ones(len(played), np.bool_)
    later[turn_offsets[:-1][num_turns > 0] - begin] = False
    bad = pc.invert(pc.struct_field(played, "format_ok")).to_numpy(zero_copy_only=False)
    first_success_turn = table["first_success_turn"].fill_null(0).to_numpy()
    sampled = pc.subtract(
        pc.struct_field(played, "token_end"), pc.struct_field(played, "token_start")
    )
    num_tokens = np.bincount(
        np.repeat(np.arange(table.num_rows), num_turns),
        weights=sampled.to_numpy(),
        minlength=table.num_rows,
    )
    expected = table.num_rows if num_expected is None else num_expected
    return {
        **success_metrics(codes, first_success_turn, num_turns, max_turns=max_turns),
        "repeated_answers": _share(repeated[later], clusters[later]),
        "format_failures": _share(bad, clusters),
        "tokens_per_solved": _tokens_per_solved(num_tokens, first_success_turn >= 1, codes),
        "missing": {
            "num_expected": expected,
            "num_missing": expected - table.num_rows,
            "failures": dict(sorted(Counter(failure_causes).items())),
        },
    }


def _rate(success: Bools, prompts: Ints, name: str) -> dict[str, float | None]:
    if not len(success):
        return {name: None, "low": None, "high": None}
    interval = clustered_interval(success, prompts)
    return {name: interval.estimate, "low": interval.low, "high": interval.high}


def _share(values: Bools, prompts: Ints) -> dict[str, Any]:
    return {
        "num": int(values.sum()),
        "num_turns": len(values),
        **_rate(values, prompts, "rate"),
    }


def _tokens_per_solved(
    num_tokens: npt.NDArray[Any], solved: Bools, prompts: Ints
) -> dict[str, Any]:
    interval = ratio_interval(num_tokens, solved, prompts)
    total, num_solved = int(num_tokens.sum()), int(solved.sum())
    return {
        "num_tokens": total,
        "num_solved": num_solved,
        "estimate": total / num_solved if num_solved else None,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
    }
