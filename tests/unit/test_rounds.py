"""Round after round, with a pool and a training that do as they are told: order and resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from drift_ray import rounds
from drift_ray.errors import FingerprintError, StageError
from drift_ray.lineage import claim_run
from drift_ray.overlap import BackgroundTraining
from drift_ray.pipeline import Pipeline
from drift_ray.rollout.pool import ReplicaPool
from drift_ray.round_plan import Round
from drift_ray.store import MODEL, ROUND_FILE, RunStore
from drift_ray.training import SUMMARY_FILE
from tests.unit.fake_pool import FakePool
from tests.unit.scripted import run_config

NUM_ROUNDS, PARTS_A_ROUND = 4, 2
ROUNDS = f"rounds={{num_rounds: {NUM_ROUNDS}, prompts_per_round: 4, keep_policies: 2}}"


class FakeTraining:
    """Commits a policy for the weights that it finds; fails when its round is due.

    Args:
        store: The run directory.
        planned: All rounds.
        failing: The round in which it fails.
        is_dead: Whether it has died before anything was sampled.
    """

    def __init__(
        self, store: RunStore, planned: list[Round], failing: int, *, is_dead: bool
    ) -> None:
        self._store, self._planned, self._failing = store, planned, failing
        self._is_dead = is_dead

    def raise_if_failed(self, *, wait_s: float = 0.0) -> bool:
        if self._is_dead:
            raise StageError("training died")
        for each in self._planned:
            subrun = self._store.subrun(each.folder)
            if not subrun.has_digest("weights/drift/summary.json", each.lineage.weights):
                continue
            if each.number == self._failing:
                raise StageError("training failed")
            place = self._store if each is self._planned[-1] else subrun
            if not subrun.exists(ROUND_FILE):
                summary = {"digest": each.lineage.model, "training": {"num_steps": 1}}
                place.write_json(SUMMARY_FILE, summary)
        return False

    def result(self) -> dict[str, Any]:
        summary: dict[str, Any] = self._store.read_json(SUMMARY_FILE)
        return summary


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(run_config(tmp_path, "task.train.num_prompts=9", ROUNDS))


def run(
    pipeline: Pipeline, pool: FakePool, *, failing: int = 0, is_dead: bool = False
) -> dict[str, Any]:
    planned = list(pipeline.inputs.rounds)
    training = FakeTraining(pipeline.store, planned, failing, is_dead=is_dead)
    return rounds.run(
        pipeline.store,
        cast("ReplicaPool", pool),
        cast("BackgroundTraining", training),
        pipeline.config,
        pipeline.inputs.prompts,
        planned,
    )


def files(store: RunStore) -> set[str]:
    root = Path(store.root)
    names = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    return {name for name in names if not name.endswith(("metrics.jsonl", "status.json"))}


def told(store: RunStore) -> list[int]:
    lines = Path(store.path("metrics.jsonl")).read_text().splitlines()
    return [line["round"] for line in map(json.loads, lines) if line["stage"] == rounds.STAGE]


def test_rounds_follow_each_other(pipeline: Pipeline) -> None:
    pool = FakePool(pipeline.store)
    summary = run(pipeline, pool)
    planned = pipeline.inputs.rounds
    assert summary["digest"] == pipeline.lineage.model
    assert [play.subrun for play in pool.plays] == [each.folder for each in planned]
    assert [play.policy.digest for play in pool.plays] == [
        pipeline.lineage.reference,
        *(each.lineage.model for each in planned[:-1]),
    ]
    assert pool.plays[1].policy.folder == "rounds/001/model"
    assert len({play.seed for play in pool.plays}) == NUM_ROUNDS
    assert told(pipeline.store) == list(range(1, NUM_ROUNDS + 1))
    for each in planned:
        subrun = pipeline.store.subrun(each.folder)
        assert rounds.is_done(pipeline.store, each)
        assert len(subrun.parts("rollouts")) == len(subrun.parts("weights/drift")) == PARTS_A_ROUND
        record = subrun.read_json(ROUND_FILE)
        assert record["num_trajectories"] == 4 * pipeline.config.rollout.group_size
        assert record["success_at"][0] == {"k": 1, "estimate": 0.5}
        assert record["num_sampled_tokens"] > 0
    kept = [each.number for each in planned if pipeline.store.exists(f"{each.folder}/{MODEL}")]
    assert kept == [NUM_ROUNDS - 1]
    again = FakePool(pipeline.store)
    run(pipeline, again)
    assert again.plays == []


@pytest.mark.parametrize("die_after", [0, PARTS_A_ROUND + 1, 3 * PARTS_A_ROUND])
def test_wherever_sampling_ends_the_rest_is_done_and_nothing_twice(
    pipeline: Pipeline, die_after: int
) -> None:
    first = FakePool(pipeline.store, die_after=die_after)
    with pytest.raises(StageError, match="replicas died"):
        run(pipeline, first)
    second = FakePool(pipeline.store)
    run(pipeline, second)
    assert len(first.done + second.done) == len({*first.done, *second.done})
    assert len(first.done + second.done) == NUM_ROUNDS * PARTS_A_ROUND
    assert told(pipeline.store) == list(range(1, NUM_ROUNDS + 1))


def test_a_training_that_fails_ends_its_round_and_is_gone_on_with(pipeline: Pipeline) -> None:
    first = FakePool(pipeline.store)
    with pytest.raises(StageError, match="training failed"):
        run(pipeline, first, failing=2)
    assert told(pipeline.store) == [1]
    second = FakePool(pipeline.store)
    run(pipeline, second)
    assert len(first.done) == 2 * PARTS_A_ROUND
    assert len(second.done) == 2 * PARTS_A_ROUND


def test_nothing_is_sampled_for_a_training_that_died(pipeline: Pipeline) -> None:
    pool = FakePool(pipeline.store)
    with pytest.raises(StageError, match="training died"):
        run(pipeline, pool, is_dead=True)
    assert pool.done == []


def test_a_line_that_was_not_written_is_made_up_for(pipeline: Pipeline) -> None:
    run(pipeline, FakePool(pipeline.store))
    pipeline.store.remove("metrics.jsonl")
    before = files(pipeline.store)
    run(pipeline, FakePool(pipeline.store))
    assert told(pipeline.store) == list(range(1, NUM_ROUNDS + 1))
    assert files(pipeline.store) == before


def test_other_settings_are_refused_before_a_round_is_redone(
    tmp_path: Path, pipeline: Pipeline
) -> None:
    run(pipeline, FakePool(pipeline.store))
    before = pipeline.store.subrun("rounds/001").read_json(ROUND_FILE)
    other = run_config(tmp_path, "task.train.num_prompts=9", ROUNDS, "training.learning_rate=1e-3")
    with pytest.raises(FingerprintError, match=r"training\.learning_rate"):
        Pipeline(other).run()
    assert pipeline.store.subrun("rounds/001").read_json(ROUND_FILE) == before


def test_a_directory_of_rounds_takes_no_other_run(tmp_path: Path, pipeline: Pipeline) -> None:
    claim_run(pipeline.store, pipeline.config, pipeline.lineage)
    run(pipeline, FakePool(pipeline.store))
    with pytest.raises(FingerprintError, match=r"rounds\.prompts_per_round"):
        Pipeline(run_config(tmp_path, "task.train.num_prompts=9")).run()


def test_failures_of_a_round_say_how_to_go_on(tmp_path: Path) -> None:
    pipeline = Pipeline(
        run_config(tmp_path, "task.train.num_prompts=9", ROUNDS, "rollout.max_failed_frac=0.0")
    )
    failing = [prompt.prompt_id for prompt in pipeline.inputs.prompts]
    with pytest.raises(StageError, match=r"trajectories failed") as caught:
        run(pipeline, FakePool(pipeline.store, failing=failing))
    assert f"delete {pipeline.store.path('rounds/001/rollouts')}" in caught.value.hint
