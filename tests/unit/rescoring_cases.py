"""Trajectories with several answers a turn, and what a row-by-row loop makes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from drift_ray.types import EndReason, Trajectory, Turn
from tests.unit.scripted import trajectory

MAX_TURNS, MAX_ACTIONS = 3, 6
GOLD = "1"

answer_lists = st.lists(st.sampled_from(["1", "2", "3", "?"]), max_size=3)
part_lists = st.lists(
    st.lists(answer_lists, min_size=1, max_size=MAX_TURNS), min_size=1, max_size=6
)
correct_sets = st.sets(st.sampled_from(["1", "2", "3"]))


def played(prompt_id: str, index: int, turns: Sequence[Sequence[str]]) -> Trajectory:
    """A trajectory as sampled under the grader for which "1" alone is correct."""
    record = trajectory(prompt_id, index, answers=["x"] * len(turns))
    kept: list[Turn] = []
    for turn, said in zip(record.turns, turns, strict=True):
        executed = tuple(said[: said.index(GOLD) + 1] if GOLD in said else said)
        kept.append(
            dataclasses.replace(
                turn,
                answers=executed,
                answer_norms=tuple(f"old {answer}" for answer in executed),
                reward=float(GOLD in executed),
                format_ok=bool(executed),
            )
        )
        if GOLD in executed:
            break
    solved = kept[-1].reward > 0
    return dataclasses.replace(
        record,
        gold=GOLD,
        turns=tuple(kept),
        first_success_turn=len(kept) if solved else None,
        format_penalty=-0.1 * sum(not turn.format_ok for turn in kept),
        end_reason=EndReason.SUCCESS if solved else EndReason.MAX_TURNS,
    )


def part(lists: Sequence[Sequence[Sequence[str]]]) -> list[Trajectory]:
    return [played(f"p{i // 2}", i % 2, turns) for i, turns in enumerate(lists)]


@dataclass(frozen=True, slots=True)
class Expected:
    """One row's new verdict."""

    has_verdict: bool
    first_success_turn: int | None = None
    rewards: list[float] | None = None
    answer_norms: list[list[str]] | None = None
    format_penalty: float | None = None
    censored: bool | None = None


def by_a_loop(record: Trajectory, correct: set[str], *, several_a_turn: bool) -> Expected:
    """Judge one trajectory turn by turn; "?" cannot be graded."""
    rewards: list[float] = []
    norms: list[list[str]] = []
    penalty = 0.0
    for turn in record.turns:
        norms.append([])
        penalty -= 0.0 if turn.format_ok else 0.1
        for answer in turn.answers:
            if answer == "?":
                return Expected(False)
            norms[-1].append(f"new {answer}")
            if answer in correct:
                return Expected(True, len(norms), [*rewards, 1.0], norms, penalty, False)
        rewards.append(0.0)
    actions = sum(len(turn.answers) for turn in record.turns)
    room = len(record.turns) < MAX_TURNS or several_a_turn
    censored = record.first_success_turn is not None and room and actions < MAX_ACTIONS
    return Expected(True, None, rewards, norms, penalty, censored)
