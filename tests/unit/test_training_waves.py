"""Data in waves: every sample once an epoch, recorded waves replayed, resumed trainings equal."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.config import ModelConfig, PromptsConfig, RunConfig, TaskConfig, TrainingConfig
from drift_ray.errors import DataError, StageError
from drift_ray.store import RunStore
from drift_ray.training.batches import BatchPlan
from drift_ray.training.checkpoint import CheckpointState, save_checkpoint
from drift_ray.training.learner import StepMetrics
from drift_ray.training.loop import train
from drift_ray.training.shared_arrays import NodeGroup
from drift_ray.training.waves import (
    Overlap,
    RecordedWaves,
    WaveFeed,
    find_beside,
    read_waves,
    waves_name,
)
from tests.unit.training_cases import random_trajectory, tiny_model, write_part

OVERLAP = Overlap(weights_digest="w", num_trajectories=24)


def commit(store: RunStore, *parts: int, weight: float = 1.0) -> None:
    """Eight trajectories a part, half of them with weight."""
    for part in parts:
        rng = np.random.default_rng(part)
        trajectories = [random_trajectory(rng, f"p{part}", row) for row in range(8)]
        write_part(store, part, trajectories, [weight, 0.0] * 4)


def finish(store: RunStore) -> None:
    store.write_json("weights/drift/summary.json", {"digest": "w"})


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(str(tmp_path / "run"))


@pytest.fixture
def config(store: RunStore) -> RunConfig:
    return RunConfig(
        run=store.url,
        model=ModelConfig(path="unused"),
        task=TaskConfig(
            name="test",
            train=PromptsConfig(source="addition"),
            test=PromptsConfig(source="addition", split="test"),
        ),
        training=TrainingConfig(batch_size=3, learning_rate=1e-2, num_epochs=2),
    )


def waves_of(store: RunStore, events: list[object] | None = None) -> RecordedWaves:
    """Instead of waiting, the next event happens."""
    waiting = iter(events or [])

    def wait(seconds: float) -> None:
        event = next(waiting)
        event() if callable(event) else commit(store, event)

    find = find_beside(store, "drift", OVERLAP)
    return RecordedWaves(store, digest="d", find=find, facts=asdict(OVERLAP), wait=wait)


def plan_of(sizes: list[int], batch_size: int, num_epochs: int = 1, seed: int = 0) -> BatchPlan:
    plan = BatchPlan(
        num_samples=sizes[0],
        batch_size=batch_size,
        num_epochs=num_epochs,
        seed=seed,
        is_complete=len(sizes) == 1,
    )
    for number in range(1, len(sizes)):
        plan = plan.with_wave(sum(sizes[: number + 1]), is_last=number == len(sizes) - 1)
    return plan


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
    batch_size=st.integers(1, 7),
    num_epochs=st.integers(1, 3),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_sample_once_an_epoch(
    sizes: list[int], batch_size: int, num_epochs: int, seed: int
) -> None:
    plan = plan_of(sizes, batch_size, num_epochs, seed)
    batches = [plan.batch(step).tolist() for step in range(plan.num_steps)]
    per_epoch = plan.steps_per_epoch
    for epoch in range(num_epochs):
        order = list(chain(*batches[epoch * per_epoch : (epoch + 1) * per_epoch]))
        assert sorted(order) == list(range(sum(sizes)))
        if epoch == 0:  # wave after wave, whatever batches they fall into
            ends = np.cumsum(sizes)
            assert np.searchsorted(ends, order, side="right").tolist() == sorted(
                np.searchsorted(ends, order, side="right").tolist()
            )
    assert all(len(batch) == batch_size for batch in batches[: per_epoch - 1])


@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    batch_size=st.integers(1, 7),
    data=st.data(),
)
def test_a_settled_batch_does_not_change_when_waves_come(
    sizes: list[int], batch_size: int, data: st.DataObject
) -> None:
    known = data.draw(st.integers(1, len(sizes) - 1))
    partial = BatchPlan(
        num_samples=sizes[0], batch_size=batch_size, num_epochs=1, seed=1, is_complete=False
    )
    for number in range(1, known):
        partial = partial.with_wave(sum(sizes[: number + 1]), is_last=False)
    whole = plan_of(sizes, batch_size, seed=1)
    settled = [step for step in range(whole.num_steps) if partial.has_batch(step)]
    assert len(settled) == sum(sizes[:known]) // batch_size
    for step in settled:
        assert partial.batch(step).tolist() == whole.batch(step).tolist()


def test_the_schedule_is_laid_out_at_the_start() -> None:
    plan = BatchPlan(
        num_samples=4, batch_size=4, num_epochs=2, seed=0, is_complete=False, num_planned=18
    )
    assert (plan.num_schedule_steps, plan.num_steps) == (10, 10)
    done = plan.with_wave(12, is_last=True)
    assert (done.num_schedule_steps, done.num_steps) == (10, 6)


def test_a_wave_is_what_is_there_when_it_begins(store: RunStore) -> None:
    commit(store, 3, 1)
    waves = waves_of(store, [0, lambda: finish(store)])
    first = waves.wave(0)
    assert first is not None
    assert [part[-13:-8] for part in first.parts] == ["00001", "00003"]
    assert not first.is_last
    recorded = store.read_json(waves_name("d"))
    assert recorded["waves"][0]["parts"] == first.parts  # before anybody uses it
    second, third = waves.wave(1), waves.wave(2)
    assert second is not None
    assert third is not None
    assert [part[-13:-8] for part in second.parts] == ["00000"]
    assert third.parts == {}
    assert third.is_last

    # Whoever comes later takes the same waves, whatever is committed by then.
    again = waves_of(store)
    assert [again.wave(number) for number in range(3)] == [first, second, third]
    assert read_waves(store, "d") == [first, second, third]
    assert read_waves(store, "other") == []


def test_a_wave_that_does_not_come_is_asked_for_again(store: RunStore) -> None:
    assert waves_of(store, [lambda: None] * 1000).wave(0) is None


def test_a_part_that_changed_is_refused(store: RunStore) -> None:
    commit(store, 0)
    assert waves_of(store).wave(0)
    write_part(store, 0, [random_trajectory(np.random.default_rng(9))], [1.0])
    with pytest.raises(DataError, match=r"part-00000.parquet has changed[\s\S]*checkpoints/d to"):
        waves_of(store)


def test_a_damaged_record_is_named(store: RunStore) -> None:
    store.write_bytes(waves_name("d"), json.dumps({"waves": [1]}).encode())
    with pytest.raises(DataError, match=r"waves\.json is not a record of waves"):
        read_waves(store, "d")


def feed(store: RunStore, config: RunConfig, overlap: Overlap | None = OVERLAP) -> WaveFeed:
    return WaveFeed(store, config, NodeGroup(), digest="d", overlap=overlap)


def test_waves_without_samples_are_passed_over(store: RunStore, config: RunConfig) -> None:
    commit(store, 0, weight=0.0)
    assert waves_of(store).wave(0)
    commit(store, 1)
    found = feed(store, config)
    assert len(found.waves) == 2
    assert len(found.split.train) == 4
    more = found.more()
    assert more is not None
    assert more.num_planned == 6  # a quarter of 24: 4 of the 16 trajectories so far


def test_nothing_to_train_on_is_said_when_all_is_there(store: RunStore, config: RunConfig) -> None:
    commit(store, 0, weight=0.0)
    finish(store)
    with pytest.raises(StageError, match="All 8 trajectories"):
        feed(store, config)


def test_without_overlap_there_is_one_wave_and_no_record(
    store: RunStore, config: RunConfig
) -> None:
    commit(store, 0, 1)
    found = feed(store, config, overlap=None)
    assert [sorted(wave.parts) for wave in found.waves] == [store.parts("rollouts")]
    assert found.more() is None
    assert not store.exists(waves_name("d"))


def test_a_resumed_training_replays_the_waves(
    store: RunStore, config: RunConfig, tmp_path: Path
) -> None:
    commit(store, 0)
    assert waves_of(store).wave(0)
    commit(store, 1, 2)
    assert waves_of(store).wave(1)
    finish(store)

    def run(
        resume_from: Path | None = None,
    ) -> tuple[dict[str, torch.Tensor], list[StepMetrics]]:
        model, steps = tiny_model(), []

        def save(state: CheckpointState, *trained: object) -> None:
            save_checkpoint(tmp_path / f"step-{state.step}", state, *trained)

        found = feed(store, config)
        train(
            model,
            found.split.train,
            config.training.model_copy(update={"checkpoint_every_steps": 2}),
            seed=1,
            digest="d",
            more=found.more(),
            resume_from=resume_from,
            on_step=steps.append,
            on_checkpoint=save if resume_from is None else lambda *_: None,
        )
        assert len(found.split.train) == 12
        assert found.is_complete
        return model.state_dict(), steps

    undisturbed, steps = run()
    assert [each.step for each in steps] == list(range(8))
    assert [each.num_samples for each in steps] == [3] * 8
    # Half of the planned 24 become samples, as half of the first wave's: 2 epochs of 4 steps.
    assert {each.num_steps for each in steps} == {8}
    for step in (2, 4, 6):  # before the second wave, within the first epoch and after it
        resumed, rest = run(tmp_path / f"step-{step}")
        assert [each.step for each in rest] == list(range(step, 8))
        torch.testing.assert_close(resumed, undisturbed, rtol=1e-5, atol=1e-7)
    assert (tmp_path / "step-8").exists()
