"""Weights by the verdicts of another grader are those of trajectories that it had judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.config import EnvironmentConfig, WeightingConfig
from drift_ray.errors import DataError, GradingError
from drift_ray.rescoring.grading import grade_answers
from drift_ray.rescoring.verdicts import Answers, judge
from drift_ray.schema import NUM_TURNS, WEIGHT_SCHEMA, trajectory_table
from drift_ray.types import Trajectory, Verdict
from drift_ray.weighting.part import return_table, weight_table
from drift_ray.weighting.split import weigh_all
from drift_ray.weighting.verdicts import for_all_rows, with_verdicts
from tests.unit.rescoring_cases import by_a_loop, correct_sets, part, part_lists

CONFIGS = st.builds(
    WeightingConfig,
    method=st.sampled_from(["drift", "single_turn", "success_only"]),
    repetition_penalty=st.sampled_from([0.0, 0.5]),
)


def verdicts_on(table: pa.Table, correct: set[str]) -> pa.Table:
    def grade(pairs: Sequence[tuple[str, str]]) -> list[Verdict | GradingError]:
        return [
            GradingError("no word")
            if answer == "?"
            else Verdict(correct=answer in correct, valid=True, normalized=f"new {answer}")
            for answer, _ in pairs
        ]

    answers = Answers.of(table)
    grades, _ = grade_answers(answers, grade)
    return judge(table, answers, grades, EnvironmentConfig()).verdicts


def rejudged(record: Trajectory, correct: set[str]) -> Trajectory | None:
    """The record as it had been, had the other grader judged it from the start."""
    new = by_a_loop(record, correct, several_a_turn=False)
    if new.rewards is None or new.answer_norms is None or new.format_penalty is None:
        return None
    turns = [
        dataclasses.replace(turn, reward=reward, answer_norms=tuple(norms))
        for turn, reward, norms in zip(record.turns, new.rewards, new.answer_norms, strict=False)
    ]
    return dataclasses.replace(
        record,
        turns=tuple(turns),
        first_success_turn=new.first_success_turn,
        format_penalty=new.format_penalty,
    )


@given(lists=part_lists, correct=correct_sets, config=CONFIGS)
def test_weights_are_those_of_trajectories_judged_so_from_the_start(
    lists: list[list[list[str]]], correct: set[str], config: WeightingConfig
) -> None:
    records = part(lists)
    table = trajectory_table(records)
    verdicts = verdicts_on(table, correct)
    found = return_table(with_verdicts(table, verdicts, "v"), config)
    others = [other for record in records if (other := rejudged(record, correct))]
    expected = return_table(trajectory_table(others), config)
    assert found.num_rows == expected.num_rows
    for name in ("discounted_return", "repetition_penalty", "format_penalty", "shaped_return"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-12)
    for name in ("first_success_turn", "truncated", "format_failed"):
        assert found[name].equals(expected[name])
    weight = weigh_all([found], config).importance_weight
    np.testing.assert_allclose(weight, weigh_all([expected], config).importance_weight)

    complete = for_all_rows(weight_table(found, weight, {b"k": b"v"}), verdicts)
    assert complete.schema.metadata[b"k"] == b"v"
    assert complete.select(WEIGHT_SCHEMA.names).schema.equals(WEIGHT_SCHEMA)
    has_verdict = verdicts["has_verdict"].to_numpy()
    all_weights = complete["importance_weight"].to_numpy()
    assert not all_weights[~has_verdict].any()
    np.testing.assert_array_equal(all_weights[has_verdict], weight)
    assert complete["shaped_return"].is_valid().to_pylist() == has_verdict.tolist()
    assert complete["prompt_id"].equals(table["prompt_id"])
    assert complete[NUM_TURNS].equals(verdicts["num_turns"])


def test_verdicts_of_other_rows_are_refused() -> None:
    table = trajectory_table(part([[["1"]], [["2"]]]))
    verdicts = verdicts_on(table, {"1"})
    backwards = verdicts.take([1, 0])
    with pytest.raises(DataError, match="'trajectory_index' differs"):
        with_verdicts(table, backwards, "v")
    longer = verdicts.set_column(4, NUM_TURNS, pa.array([1, 2], pa.int32()))
    with pytest.raises(DataError, match="exceeds the turns"):
        with_verdicts(table, longer, "v")
