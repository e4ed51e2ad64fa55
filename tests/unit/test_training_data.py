"""Which trajectories and tokens are trained on, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drift_ray.errors import DataError, StageError
from drift_ray.schema import trajectory_table
from drift_ray.store import RunStore
from drift_ray.training.data import load_training_data
from drift_ray.types import Trajectory
from tests.unit.training_cases import random_trajectory, random_turn, weight_table, write_part

LOSS_TURNS = ("last", "all")


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(str(tmp_path))


@pytest.fixture
def trajectories() -> list[Trajectory]:
    rng = np.random.default_rng(0)
    return [random_trajectory(rng, "p", index) for index in range(8)]


@pytest.mark.parametrize("loss_turns", LOSS_TURNS)
def test_loss_tokens_are_the_sampled_ones(
    store: RunStore, trajectories: list[Trajectory], loss_turns: str
) -> None:
    write_part(store, 0, trajectories[:3], [1.0] * 3)
    write_part(store, 1, trajectories[3:], [2.0] * 5)
    data = load_training_data(store, weighting="drift", loss_turns=loss_turns).train

    assert len(data) == 8
    for index, trajectory in enumerate(trajectories):
        own = slice(data.offsets[index], data.offsets[index + 1])
        spans = [
            range(t.token_start, t.token_end)
            for t in (trajectory.turns if loss_turns == "all" else trajectory.turns[-1:])
        ]
        expected = [any(i in span for span in spans) for i in range(len(trajectory.token_ids))]
        assert data.loss_mask[own].tolist() == expected
        np.testing.assert_array_equal(data.token_ids[own], trajectory.token_ids)
        np.testing.assert_array_equal(data.ref_logprobs[own], trajectory.logprobs)
    assert data.importance_weight.tolist() == [1.0] * 3 + [2.0] * 5


def test_a_prefill_is_context(store: RunStore, trajectories: list[Trajectory]) -> None:
    write_part(store, 0, trajectories[:1], [1.0])
    data = load_training_data(store, weighting="drift", loss_turns="all").train
    first = trajectories[0].turns[0].token_start
    assert not data.loss_mask[first - 1]
    assert data.loss_mask[first]


def test_a_rendered_history_is_cut_to_the_last_sequence(
    store: RunStore, trajectories: list[Trajectory]
) -> None:
    plain, other = trajectories[0], max(trajectories, key=lambda each: len(each.turns))
    begin = other.turns[-1].token_start - 3
    rendered = replace(
        other, turns=(*other.turns[:-1], replace(other.turns[-1], prompt_start=begin))
    )
    write_part(store, 0, [plain, rendered], [1.0, 1.0])
    data = load_training_data(store, weighting="drift", loss_turns="last").train

    np.testing.assert_array_equal(data.token_ids[: data.offsets[1]], plain.token_ids)
    np.testing.assert_array_equal(data.token_ids[data.offsets[1] :], other.token_ids[begin:])
    np.testing.assert_array_equal(data.ref_logprobs[data.offsets[1] :], other.logprobs[begin:])
    num_loss = other.turns[-1].token_end - other.turns[-1].token_start
    assert data.loss_mask[data.offsets[1] :].tolist() == [False] * 3 + [True] * num_loss

    with pytest.raises(DataError, match="row 1: its turns were sampled after histories") as caught:
        load_training_data(store, weighting="drift", loss_turns="all")
    assert "model.history=append" in caught.value.hint


def test_what_cannot_teach_is_left_out(store: RunStore, trajectories: list[Trajectory]) -> None:
    silent = replace(trajectories[2], turns=(random_turn(0, 5, 5),))
    no_turns = replace(trajectories[3], turns=())
    kept = trajectories[4]
    rows = [trajectories[0], trajectories[1], silent, no_turns, kept]
    write_part(store, 0, rows, [0.0, 0.0, 0.5, 0.5, 3.0])
    data = load_training_data(store, weighting="drift", loss_turns="last").train

    assert len(data) == 1
    np.testing.assert_array_equal(data.token_ids, kept.token_ids)
    assert (data.num_zero_weight, data.num_without_loss) == (2, 2)
    assert data.left_out_weight_frac == pytest.approx(0.25)


def test_signed_weights_count_by_their_size(
    store: RunStore, trajectories: list[Trajectory]
) -> None:
    silent = replace(trajectories[2], turns=(random_turn(0, 5, 5),))
    rows = [trajectories[0], trajectories[1], silent, trajectories[3]]
    write_part(store, 0, rows, [0.75, -0.25, -0.5, 0.0])
    data = load_training_data(store, weighting="drift", loss_turns="last").train

    assert data.importance_weight.tolist() == [0.75, -0.25]
    assert (data.num_zero_weight, data.num_without_loss) == (1, 1)
    assert data.left_out_weight_frac == pytest.approx(1 / 3)


def test_the_fingerprint_follows_the_content(
    store: RunStore, trajectories: list[Trajectory]
) -> None:
    def fingerprint(weights: Sequence[float], loss_turns: str = "all") -> str:
        write_part(store, 0, trajectories, weights)
        return load_training_data(
            store, weighting="drift", loss_turns=loss_turns
        ).train.fingerprint()

    same, other = [1.0] * 8, [1.0] * 7 + [1.5]
    assert fingerprint(same) == fingerprint(same)
    assert len({fingerprint(same), fingerprint(other), fingerprint(same, "last")}) == 3


def test_no_rollouts(store: RunStore) -> None:
    with pytest.raises(StageError, match="drift-ray rollout"):
        load_training_data(store, weighting="drift", loss_turns="last")


def test_unweighed_part_is_named(store: RunStore, trajectories: list[Trajectory]) -> None:
    write_part(store, 0, trajectories, [1.0] * 8)
    store.write_table("rollouts/part-00001.parquet", trajectory_table(trajectories))
    with pytest.raises(StageError, match=r"1 of 2 .*part-00001.parquet[\s\S]*drift-ray weigh"):
        load_training_data(store, weighting="drift", loss_turns="last")


def test_all_weights_zero(store: RunStore, trajectories: list[Trajectory]) -> None:
    write_part(store, 0, trajectories, [0.0] * 8)
    with pytest.raises(StageError, match="All 8 trajectories"):
        load_training_data(store, weighting="drift", loss_turns="last")


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf")])
def test_impossible_weight(store: RunStore, trajectories: list[Trajectory], weight: float) -> None:
    write_part(store, 0, trajectories, [1.0, 1.0, weight, *[1.0] * 5])
    with pytest.raises(DataError, match=r"weights/drift/part-00000.parquet, row 2: .*weight"):
        load_training_data(store, weighting="drift", loss_turns="last")


def test_weights_of_other_rows(store: RunStore, trajectories: list[Trajectory]) -> None:
    write_part(store, 0, trajectories, [1.0] * 8)
    swapped = [trajectories[i] for i in (0, 2, 1, 3, 4, 5, 6, 7)]
    store.write_table("weights/drift/part-00000.parquet", weight_table(swapped, [1.0] * 8))
    with pytest.raises(DataError, match=r"row 1: trajectory_index is 2, but .* has 1 there"):
        load_training_data(store, weighting="drift", loss_turns="last")


def test_weights_of_fewer_rows(store: RunStore, trajectories: list[Trajectory]) -> None:
    write_part(store, 0, trajectories, [1.0] * 8)
    store.write_table("weights/drift/part-00000.parquet", weight_table(trajectories[:7], [1.0] * 7))
    with pytest.raises(DataError, match=r"has 7 rows, but .* has 8"):
        load_training_data(store, weighting="drift", loss_turns="last")


@pytest.mark.parametrize("span", [(0, 3), (5, 4), (2, 999)])
def test_impossible_turn(
    store: RunStore, trajectories: list[Trajectory], span: tuple[int, int]
) -> None:
    rows = [*trajectories[:3], replace(trajectories[3], turns=(random_turn(0, *span),))]
    write_part(store, 0, rows, [1.0] * 4)
    with pytest.raises(DataError, match=r"rollouts/part-00000.parquet, row 3: .*'turns'"):
        load_training_data(store, weighting="drift", loss_turns="last")


def test_a_sample_whose_engine_told_no_logprobs(
    store: RunStore, trajectories: list[Trajectory]
) -> None:
    silent = replace(trajectories[1], logprobs=np.full_like(trajectories[1].logprobs, np.nan))
    write_part(store, 0, [trajectories[0], silent], [1.0, 1.0])
    data = load_training_data(store, weighting="drift", loss_turns="last").train
    assert data.loss_mask[data.offsets[1] :].any()
    assert np.isnan(data.ref_logprobs[data.offsets[1] :]).all()


@pytest.mark.parametrize("logprob", [np.nan, -np.inf])
def test_sampled_token_without_logprob(
    store: RunStore, trajectories: list[Trajectory], logprob: float
) -> None:
    trajectories[5].logprobs[trajectories[5].turns[-1].token_end - 1] = logprob
    write_part(store, 0, trajectories, [1.0] * 8)
    with pytest.raises(DataError, match=r"rollouts/part-00000.parquet, row 5: .*'logprobs'"):
        load_training_data(store, weighting="drift", loss_turns="last")
