"""Verdicts of another grader on whole trajectories, against a loop over turns."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.config import EnvironmentConfig
from drift_ray.errors import GradingError
from drift_ray.rescoring.grading import grade_answers
from drift_ray.rescoring.verdicts import Answers, Judged, judge
from drift_ray.schema import VERDICT_SCHEMA, trajectory_table
from drift_ray.types import Trajectory, Verdict
from tests.unit.rescoring_cases import (
    MAX_ACTIONS,
    MAX_TURNS,
    answer_lists,
    by_a_loop,
    correct_sets,
    part,
    part_lists,
    played,
)


def grade(pairs: Sequence[tuple[str, str]], correct: set[str]) -> list[Verdict | GradingError]:
    assert len(set(pairs)) == len(pairs), "equal answers are graded once"
    return [
        GradingError(f"no word on {answer}", cause="deadline")
        if answer == "?"
        else Verdict(correct=answer in correct, valid=True, normalized=f"new {answer}")
        for answer, _ in pairs
    ]


def judged(table: pa.Table, correct: set[str], max_actions_per_turn: int = 1) -> Judged:
    answers = Answers.of(table)
    grades, errors = grade_answers(answers, lambda pairs: grade(pairs, correct))
    environment = EnvironmentConfig(
        max_turns=MAX_TURNS,
        max_actions_per_traj=MAX_ACTIONS,
        max_actions_per_turn=max_actions_per_turn,
    )
    found = judge(table, answers, grades, environment)
    assert set(found.obstacles.tolist()) <= errors.keys()
    return found


@given(lists=part_lists, correct=correct_sets, per_turn=st.sampled_from([0, 1, 3]))
def test_verdicts_are_those_of_a_loop_over_turns(
    lists: list[list[list[str]]], correct: set[str], per_turn: int
) -> None:
    records = part(lists)
    found = judged(trajectory_table(records), correct, per_turn).verdicts
    assert found.schema.equals(VERDICT_SCHEMA)
    for record, row in zip(records, found.to_pylist(), strict=True):
        expected = by_a_loop(record, correct, several_a_turn=per_turn != 1)
        assert row["has_verdict"] == expected.has_verdict
        for name in ("first_success_turn", "rewards", "answer_norms", "censored"):
            assert row[name] == getattr(expected, name), name
        assert row["format_penalty"] == pytest.approx(expected.format_penalty)
        turns = None if expected.rewards is None else len(expected.rewards)
        assert row["num_turns"] == turns


@given(lists=part_lists)
def test_the_same_grader_changes_nothing(lists: list[list[list[str]]]) -> None:
    table = trajectory_table(part(lists))
    found = judged(table, {"1"})
    assert found.flips.num_rows == 0
    for row, was in zip(found.verdicts.to_pylist(), table.to_pylist(), strict=True):
        if row["has_verdict"]:
            assert row["first_success_turn"] == was["first_success_turn"]
            assert row["rewards"] == [turn["reward"] for turn in was["turns"]]
            assert row["format_penalty"] == pytest.approx(was["format_penalty"])
            assert row["censored"] is False


@given(lists=part_lists, correct=correct_sets, cut=st.integers(0, 6))
def test_a_slice_of_a_part_is_judged_alike(
    lists: list[list[list[str]]], correct: set[str], cut: int
) -> None:
    table = trajectory_table(part(lists))
    whole = judged(table, correct).verdicts.to_pylist()
    assert judged(table.slice(cut), correct).verdicts.to_pylist() == whole[cut:]


def one(turns: list[list[str]]) -> tuple[Trajectory, pa.Table]:
    record = played("p", 0, turns)
    return record, trajectory_table([record])


def test_flips_are_the_answers_that_count_and_are_judged_otherwise() -> None:
    _, table = one([["3"], ["2"], ["1"]])
    assert judged(table, {"1", "2"}).flips.to_pylist() == [
        {
            "prompt_id": "p",
            "trajectory_index": 0,
            "turn_index": 1,
            "answer": "2",
            "gold": "1",
            "was_correct": False,
            "is_correct": True,
        }
    ]
    flips = judged(table, set()).flips.to_pylist()
    assert [(flip["turn_index"], flip["was_correct"]) for flip in flips] == [(2, True)]


def test_a_success_that_is_wrong_now_is_censored_only_if_there_was_room() -> None:
    for turns, expected in (([["1"]], True), ([["2"], ["2"], ["1"]], False)):
        (row,) = judged(one(turns)[1], set()).verdicts.to_pylist()
        assert (row["censored"], row["first_success_turn"]) == (expected, None)
    # The last message may have held answers that nobody executed.
    (row,) = judged(one([["2"], ["2"], ["1"]])[1], set(), 0).verdicts.to_pylist()
    assert row["censored"]


def test_what_could_not_be_graded_matters_only_before_a_success() -> None:
    _, table = one([["2"], ["?"], ["1"]])
    assert judged(table, {"2"}).verdicts["has_verdict"].to_pylist() == [True]
    found = judged(table, {"1"})
    (row,) = found.verdicts.to_pylist()
    assert not row["has_verdict"]
    assert {row[name] for name in ("num_turns", "rewards", "format_penalty", "censored")} == {None}
    assert found.obstacles.tolist() == [1]
    assert found.flips.num_rows == 0


@given(answers=answer_lists)
def test_parts_without_answers_are_fine(answers: list[str]) -> None:
    _, table = one([[], answers])
    assert judged(table.slice(1), {"1"}).verdicts.num_rows == 0
    (row,) = judged(table, set()).verdicts.to_pylist()
    assert row["has_verdict"] == ("?" not in played("p", 0, [[], answers]).turns[1].answers)
