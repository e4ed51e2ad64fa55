"""Parts are named by their work, and exactly the missing ones are made."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.config import EnvironmentConfig, SamplingConfig
from drift_ray.errors import DataError, StageError
from drift_ray.rollout import stage
from drift_ray.rollout.monitor import Totals
from drift_ray.rollout.pool import ReplicaPool
from drift_ray.rollout.sampling import PartPlan, sample_missing
from drift_ray.rollout.status import read_status
from drift_ray.rollout.work import Counts, Play, PolicyRef
from drift_ray.schema import FAILURE_SCHEMA, TRAJECTORY_SCHEMA
from drift_ray.store import SCALE_FILE, RunStore
from drift_ray.tasks.sources import load_prompts
from drift_ray.types import Prompt
from tests.unit.fake_pool import FakePool
from tests.unit.scripted import prompts, run_config

PLAY = Play(
    group_size=3,
    policy=PolicyRef(digest="reference"),
    environment=EnvironmentConfig(),
    grader="reference",
    sampling=SamplingConfig(),
    max_attempts=1,
    seed=0,
)


def plan(chosen: Sequence[Prompt], **settings: Any) -> PartPlan:
    given_settings: dict[str, Any] = {
        "folder": "rollouts",
        "digest": "d",
        "prompts_per_part": 2,
        "play": PLAY,
    }
    return PartPlan(chosen, **(given_settings | settings))


def names(parts: PartPlan) -> list[str]:
    return [part.name for part in parts]


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(str(tmp_path / "run"))


def sample(
    store: RunStore, pool: FakePool, parts: PartPlan, max_failed_frac: float = 0.0
) -> Totals:
    return sample_missing(
        store,
        cast(ReplicaPool, pool),
        parts,
        stage="rollout",
        max_failed_frac=max_failed_frac,
    )


@given(num_prompts=st.integers(1, 30), size=st.integers(1, 12))
def test_every_prompt_is_in_one_part_in_order(num_prompts: int, size: int) -> None:
    chosen = prompts(["1"] * num_prompts)
    plan_ = plan(chosen, prompts_per_part=size)
    parts = list(plan_)
    assert [p for part in parts for p in part.prompts] == chosen
    assert all(len(part.prompts) == size for part in parts[:-1])
    found = names(plan_)
    assert found == [part.name for part in parts] == sorted(set(found))
    assert all(re.fullmatch(r"rollouts/part-\d{6}-[0-9a-f]{8}\.parquet", n) for n in found)


def test_parts_are_cut_from_the_prompts_as_they_are_asked_for() -> None:
    class Watched(list[Prompt]):
        read = 0

        def __iter__(self) -> Iterator[Prompt]:
            for each in super().__iter__():
                self.read += 1
                yield each

    chosen = Watched(prompts(["1"] * 9))
    parts = iter(plan(chosen))
    assert chosen.read == 0
    next(parts)
    assert chosen.read == 2


def test_a_plan_carries_all_that_shapes_its_samples(tmp_path: Path) -> None:
    from drift_ray.lineage import trace

    config = run_config(
        tmp_path, "rollout.sampling.temperature=0.25", "seed=7", "rollout.max_attempts=5"
    )
    chosen = load_prompts(config.task.train, task="addition", seed=7)
    lineage = trace(config, chosen, chosen)
    parts = stage.plan(config, lineage, chosen)
    play = parts.play
    assert play.sampling == config.rollout.sampling
    assert (play.seed, play.group_size, play.max_attempts) == (7, 2, 5)
    assert play.policy == PolicyRef(digest=lineage.reference)
    assert (play.environment, play.grader) == (config.task.environment, config.task.grader)
    assert [len(part.prompts) for part in parts] == [2, 2, 1]
    other = run_config(tmp_path, "rollout.sampling.temperature=0.5", "seed=7")
    again = stage.plan(other, trace(other, chosen, chosen), chosen)
    assert not set(names(parts)) & set(names(again))


def test_names_depend_on_the_work_only() -> None:
    chosen = prompts(["1"] * 5)
    found = names(plan(chosen))
    assert found == names(plan(chosen))
    assert not set(found) & set(names(plan(chosen, digest="e")))
    assert not set(found) & set(names(plan(chosen, folder="evaluation/x")))
    # Only the parts that hold other prompts get other names.
    other = [*chosen[:-1], dataclasses.replace(chosen[-1], prompt_id="other")]
    assert names(plan(other))[:-1] == found[:-1]
    assert names(plan(other))[-1] != found[-1]
    swapped = [chosen[1], chosen[0], *chosen[2:]]
    assert names(plan(swapped))[0] != found[0]


def test_names_do_not_run_into_each_other() -> None:
    def ids(*names: str) -> list[Prompt]:
        return [Prompt(prompt_id=name, task="t", question="q", gold="1") for name in names]

    assert names(plan(ids("ab", "c"))) != names(plan(ids("a", "bc")))


def test_all_parts_are_made_and_then_none(store: RunStore) -> None:
    parts = plan(prompts(["1"] * 5))
    assert not parts.is_done(store)
    pool = FakePool(store)
    totals = sample(store, pool, parts)
    assert sorted(pool.done) == store.parts("rollouts") == names(parts)
    assert pool.done == names(parts)[::-1]
    counts = totals.counts
    assert (counts.num_trajectories, counts.num_solved, counts.num_sampled_tokens) == (15, 5, 15)
    assert totals.tokens_per_s > 0
    assert "33% solved" in str(totals)
    assert parts.is_done(store)
    again = FakePool(store)
    assert sample(store, again, parts).counts.num_trajectories == 0
    assert again.done == []
    nothing = Totals(counts=Counts(), committed=Counts(), duration_s=0.0, cpu_s=0.0)
    assert str(nothing).endswith("0 tokens/s")


def test_what_a_pool_did_before_is_not_counted_again(store: RunStore) -> None:
    pool = FakePool(store)
    first = sample(store, pool, plan(prompts(["1"] * 2)))
    second = sample(store, pool, plan(prompts(["1"] * 3), folder="evaluation/x"))
    assert [each.counts.num_trajectories for each in (first, second)] == [6, 9]


def test_an_interrupted_stage_makes_exactly_what_is_missing(store: RunStore) -> None:
    parts = plan(prompts(["1"] * 7))
    first = FakePool(store, die_after=2)
    with pytest.raises(StageError):
        sample(store, first, parts)
    assert len(first.done) == 2
    status = read_status(store)
    assert not status.is_running
    assert "replicas died" in status.state
    assert not parts.is_done(store)
    kept = {name: store.fs.cat_file(store.path(name)) for name in first.done}
    second = FakePool(store)
    assert sample(store, second, parts).counts.num_trajectories == 12
    assert sorted(first.done + second.done) == names(parts)
    assert all(store.fs.cat_file(store.path(name)) == data for name, data in kept.items())
    status = read_status(store)
    assert (status.state, status.num_done, status.num_total) == ("done", 21, 21)


def test_the_status_says_that_a_stage_was_interrupted(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    pool = FakePool(store)
    monkeypatch.setattr(pool, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sample(store, pool, plan(prompts(["1"])))
    assert read_status(store).state == "stopped: KeyboardInterrupt"


def test_whole_groups_in_order(store: RunStore) -> None:
    parts = plan(prompts(["1"] * 3))
    sample(store, FakePool(store), parts)
    rows = [
        (row["prompt_id"], row["trajectory_index"])
        for part in parts
        for row in store.read_table(part.name, TRAJECTORY_SCHEMA).to_pylist()
    ]
    assert rows == [(f"p{p}", index) for p in range(3) for index in range(3)]


def test_a_truncated_part_is_refused_not_replaced(store: RunStore) -> None:
    chosen = prompts(["1"] * 3)
    sample(store, FakePool(store), plan(chosen))
    name = names(plan(chosen))[1]
    path = Path(store.path(name))
    path.write_bytes(path.read_bytes()[:-9])
    pool = FakePool(store)
    parts = plan(chosen)
    for attempt in (lambda: sample(store, pool, parts), lambda: parts.is_done(store)):
        with pytest.raises(DataError, match=path.name) as caught:
            attempt()
        assert "Delete this file" in caught.value.hint
    assert pool.done == []
    path.unlink()
    assert sample(store, pool, parts).counts.num_trajectories == 3
    assert pool.done == [name]


def test_a_part_that_is_deleted_is_missed_even_if_it_was_seen(store: RunStore) -> None:
    parts = plan(prompts(["1"] * 3))
    sample(store, FakePool(store), parts)
    assert parts.is_done(store)
    store.remove(names(parts)[0])
    assert not parts.is_done(store)


def test_reports_go_to_the_metrics(store: RunStore) -> None:
    pool = FakePool(store)
    sample(store, pool, plan(prompts(["1"] * 3)))
    lines = store.fs.cat_file(store.path("metrics.jsonl")).splitlines()
    records = [json.loads(line) for line in lines]
    *records, cost = records
    assert [record["name"] for record in records] == pool.done
    assert (cost["event"], cost["num_trajectories"]) == ("end", 9)
    assert min(cost["cpu_s"], cost["duration_s"]) >= 0
    assert all(record["stage"] == "rollout" and record["time_s"] > 1e9 for record in records)
    assert sum(record["num_trajectories"] for record in records) == 9


def test_failures_stand_beside_the_part_and_may_be_too_many(store: RunStore) -> None:
    parts = plan(prompts(["1"] * 4))
    failing = ["p0", "p3"]  # 2 of 12 trajectories
    totals = sample(store, FakePool(store, failing=failing), parts, max_failed_frac=0.17)
    assert (totals.counts.num_trajectories, totals.counts.num_failures) == (10, 2)
    assert ", 2 failed" in str(totals)
    first, second = names(parts)
    rows = store.read_table(first, TRAJECTORY_SCHEMA).to_pylist()
    assert [row["num_in_group"] for row in rows] == [2, 2, 3, 3, 3]
    assert parts.num_failed(store, parts.committed(store)) == 2
    failed = [
        row["prompt_id"]
        for name in store.parts("rollouts/failures")
        for row in store.read_table(name, FAILURE_SCHEMA).to_pylist()
    ]
    assert failed == failing
    # They count however often the stage is begun.
    store.remove(second)
    with pytest.raises(StageError, match="2 trajectories failed") as caught:
        sample(store, FakePool(store, failing=failing), parts, max_failed_frac=0.1)
    assert "The first: " in caught.value.message
    assert not caught.value.message.endswith("The first: ")
    assert "--retry-failed" in caught.value.hint
    assert "max_failed_frac" in caught.value.hint
    # Nor is the stage done by being begun again: too many are too many.
    assert parts.is_done(store)
    assert not parts.is_done(store, max_failed_frac=0.1)
    with pytest.raises(StageError, match="2 trajectories failed"):
        sample(store, FakePool(store), parts, max_failed_frac=0.1)


def test_failed_trajectories_are_sampled_again_on_demand(store: RunStore) -> None:
    parts = plan(prompts(["1"] * 6))
    sample(store, FakePool(store, failing=["p0", "p5"]), parts, max_failed_frac=1.0)
    first, second, third = names(parts)
    kept = store.fs.cat_file(store.path(second))
    assert parts.forget_failures(store) == 2
    assert store.parts("rollouts") == [second]
    assert store.parts("rollouts/failures") == []
    assert not parts.is_done(store)
    pool = FakePool(store)
    assert sample(store, pool, parts).counts.num_trajectories == 12
    assert sorted(pool.done) == [first, third]
    assert store.fs.cat_file(store.path(second)) == kept
    assert parts.forget_failures(store) == 0
    assert parts.is_done(store)


def test_a_running_stage_hears_how_many_replicas_are_wanted(store: RunStore) -> None:
    store.write_json(SCALE_FILE, {"num_replicas": 5, "time_s": time.time() + 60})
    pool = FakePool(store)
    sample(store, pool, plan(prompts(["1"] * 3)))
    assert pool.fleet.num_wanted == 5
    assert not store.exists(SCALE_FILE)
    assert read_status(store).num_replicas_wanted == 5
