"""A replica in this process: it plays groups, keeps them, and commits whole parts in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from drift_ray.config import EnvironmentConfig, RunConfig, SamplingConfig
from drift_ray.errors import ModelError
from drift_ray.lineage import digest
from drift_ray.models import model_fingerprint
from drift_ray.rollout.work import Group, GroupOutcome, Part, Play, PolicyRef, Update
from drift_ray.rollout.worker import ReplicaWorker, write_part
from drift_ray.schema import FAILURE_SCHEMA, FAILURES_KEY, TRAJECTORY_SCHEMA
from drift_ray.store import RunStore
from tests.unit.fake_pool import failure
from tests.unit.scripted import ScriptedEngine, prompts, random_reply, run_config, trajectory

PART = Part(name="rollouts/part-000000-0123abcd.parquet", prompts=tuple(prompts("123")))
FAILURES = "rollouts/failures"


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(str(tmp_path / "run"))


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return run_config(tmp_path, "replicas.environment_threads=2")


def rows(store: RunStore, name: str, *columns: str, schema: Any = TRAJECTORY_SCHEMA) -> list[Any]:
    return [
        tuple(row[column] for column in columns)
        for row in store.read_table(name, schema).to_pylist()
    ]


def failures_of(store: RunStore) -> str:
    """The one file of failures, which the part names."""
    (name,) = store.parts(FAILURES)
    metadata = store.check_parts([PART.name], TRAJECTORY_SCHEMA)[PART.name]
    assert metadata[FAILURES_KEY].decode() == name
    return name


def test_a_part_is_in_order_whatever_the_order_of_its_ends(store: RunStore) -> None:
    outcomes = [
        GroupOutcome(
            trajectories=[trajectory("p0", 2, success=True), trajectory("p0", 0)],
            failures=[failure("p0", 3), failure("p0", 1)],
        ),
        GroupOutcome(failures=[failure("p1", 0)]),
        GroupOutcome(trajectories=[trajectory("p2", 1, answers=["1", "2"]), trajectory("p2", 0)]),
    ]
    report = write_part(store, PART, outcomes)
    assert rows(store, PART.name, "prompt_id", "trajectory_index", "num_in_group") == [
        ("p0", 0, 2),
        ("p0", 2, 2),
        ("p2", 0, 2),
        ("p2", 1, 2),
    ]
    assert rows(
        store, failures_of(store), "prompt_id", "trajectory_index", schema=FAILURE_SCHEMA
    ) == [
        ("p0", 1),
        ("p0", 3),
        ("p1", 0),
    ]
    assert (report.name, report.num_trajectories, report.num_failures) == (PART.name, 4, 3)
    assert (report.num_turns, report.num_sampled_tokens, report.num_solved) == (5, 5, 1)


def test_failures_are_written_first(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is gone")

    outcomes = [GroupOutcome(failures=[failure(p.prompt_id, 0)]) for p in PART.prompts]
    with monkeypatch.context() as patched:
        patched.setattr(RunStore, "create_table", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            write_part(store, PART, outcomes)
    # A part that is there is work that is done: none must stand there without its failures.
    assert len(store.parts(FAILURES)) == 1
    assert not store.exists(PART.name)


def test_a_part_without_failures_has_no_file_of_them(store: RunStore) -> None:
    write_part(store, PART, [GroupOutcome(trajectories=[trajectory("p0")])])
    assert not store.exists(FAILURES)


def test_a_part_that_is_committed_stays_as_it_is(store: RunStore) -> None:
    write_part(store, PART, [GroupOutcome(trajectories=[trajectory("p0", answers=["1"])])])
    before = store.fs.cat_file(store.path(PART.name))
    write_part(store, PART, [GroupOutcome(trajectories=[trajectory("p0", answers=["2"])])])
    assert store.fs.cat_file(store.path(PART.name)) == before


def test_failures_of_an_attempt_that_came_too_late_do_not_count(store: RunStore) -> None:
    late = [GroupOutcome(failures=[failure("p0", 0)])]
    first = write_part(store, PART, [GroupOutcome(trajectories=[trajectory("p0", success=True)])])
    assert write_part(store, PART, late) == first
    assert (first.num_trajectories, first.num_failures, first.num_solved) == (1, 0, 1)
    metadata = store.check_parts([PART.name], TRAJECTORY_SCHEMA)[PART.name]
    assert FAILURES_KEY not in metadata
    store.remove(PART.name)
    assert write_part(store, PART, late).num_failures == 1
    assert write_part(store, PART, [GroupOutcome()]).num_failures == 1


class Replica:
    """A worker whose engine is scripted, and how it is played on."""

    def __init__(self, config: RunConfig, tokenizer: Any) -> None:
        self.engine = ScriptedEngine(random_reply(tokenizer), tokenizer=tokenizer)
        self.folder = Path(config.model.path)
        self.worker = ReplicaWorker(
            config.run, config.model, config.replicas, lambda *_: self.engine
        )
        first = self.worker.warm_up()
        assert first.num_wanted > 0

    def play(self, play: Play, indices: Sequence[int], forget: Sequence[int] = ()) -> Update:
        """Take on groups of the part, and wait until all of them are finished."""
        groups = [Group(key=(PART.name, i), prompt=PART.prompts[i]) for i in indices]
        gone = [(PART.name, i) for i in forget]
        update = self.worker.exchange(play, groups, gone, False, 0.0)
        told = set(update.finished)
        while told != {group.key for group in groups}:
            update = self.worker.exchange(play, [], [], False, 60.0)
            assert update.finished, "nothing happened for a long time"
            told |= set(update.finished)
        return update

    def outcomes(self, *indices: int) -> list[GroupOutcome]:
        return self.worker.fetch([(PART.name, i) for i in indices])


def play_of(config: RunConfig, **changes: Any) -> Play:
    reference = digest(model_fingerprint(Path(config.model.path)))
    settings: dict[str, Any] = {
        "group_size": 2,
        "policy": PolicyRef(digest=reference),
        "environment": EnvironmentConfig(think=False, system_prompt=None),
        "grader": "reference",
        "sampling": SamplingConfig(max_tokens=8),
        "max_attempts": 1,
        "seed": 0,
    }
    return Play(**(settings | changes))


def test_a_part_of_one_replica(config: RunConfig, nano_tokenizer: Any) -> None:
    replica, play = Replica(config, nano_tokenizer), play_of(config)
    assert replica.worker.place().pid > 0
    update = replica.play(play, [0, 1, 2])
    assert update.counts.num_trajectories == 6
    report = replica.worker.commit(PART, play, {}, [])
    assert (report.num_trajectories, report.num_failures) == (6, 0)
    assert report.num_sampled_tokens == update.counts.num_sampled_tokens > 0
    assert report.num_solved == update.counts.num_solved
    store = RunStore(config.run)
    expected = [(p.prompt_id, i) for p in PART.prompts for i in range(2)]
    assert rows(store, PART.name, "prompt_id", "trajectory_index") == expected
    replica.play(play, [], forget=[0, 1, 2])
    with pytest.raises(KeyError):
        replica.outcomes(0)


def test_a_round_goes_into_its_own_run_and_a_new_replica_plays_its_policy(
    config: RunConfig, nano_tokenizer: Any
) -> None:
    store = RunStore(config.run)
    store.write_bytes("rounds/001/model/config.json", b"{}")
    play = play_of(
        config,
        policy=PolicyRef(digest="m1", folder="rounds/001/model"),
        subrun="rounds/002",
    )
    replica = Replica(config, nano_tokenizer)
    update = replica.play(play, [0, 1, 2])
    assert replica.engine.loaded == [Path(store.path("rounds/001/model"))]
    assert update.cpu_s > 0
    report = replica.worker.commit(PART, play, {0: "why"}, [])
    assert not store.exists(PART.name)
    subrun = store.subrun("rounds/002")
    assert rows(subrun, PART.name, "prompt_id") == [("p1",), ("p1",), ("p2",), ("p2",)]
    assert (report.num_failures, subrun.num_rows([failures_of(subrun)])) == (2, 2)


def test_the_part_is_the_same_whoever_plays_its_groups(
    config: RunConfig, nano_tokenizer: Any
) -> None:
    store, play = RunStore(config.run), play_of(config)
    alone = Replica(config, nano_tokenizer)
    alone.play(play, [0, 1, 2])
    alone.worker.commit(PART, play, {}, [])
    expected = store.fs.cat_file(store.path(PART.name))
    store.remove(PART.name)
    writer, helper, leaving = (Replica(config, nano_tokenizer) for _ in range(3))
    writer.play(play, [1])
    helper.play(play, [2])
    leaving.play(play, [0])
    writer.worker.keep([(PART.name, 0)], leaving.outcomes(0))
    writer.worker.commit(PART, play, {}, [[2]], helper.outcomes(2))
    assert store.fs.cat_file(store.path(PART.name)) == expected


def test_groups_that_were_given_up_are_failures_of_their_replicas(
    config: RunConfig, nano_tokenizer: Any
) -> None:
    store, play = RunStore(config.run), play_of(config)
    replica = Replica(config, nano_tokenizer)
    replica.play(play, [2])
    why = "5 replicas died while they played it"
    report = replica.worker.commit(PART, play, {0: why, 1: why}, [])
    assert (report.num_trajectories, report.num_failures) == (2, 4)
    assert rows(store, PART.name, "prompt_id", "trajectory_index", "num_in_group") == [
        ("p2", 0, 2),
        ("p2", 1, 2),
    ]
    columns = ("prompt_id", "trajectory_index", "turn_index", "cause", "message", "trace")
    assert rows(store, failures_of(store), *columns, schema=FAILURE_SCHEMA) == [
        (prompt_id, index, 0, "replica", why, "") for prompt_id in ("p0", "p1") for index in (0, 1)
    ]


def test_a_part_of_nothing_but_given_up_groups(config: RunConfig, nano_tokenizer: Any) -> None:
    store, play = RunStore(config.run), play_of(config, group_size=3)
    replica = Replica(config, nano_tokenizer)
    report = replica.worker.commit(PART, play, dict.fromkeys(range(3), "why"), [])
    assert (report.num_trajectories, report.num_failures) == (0, 9)
    assert store.num_rows([PART.name]) == 0
    assert store.num_rows([failures_of(store)]) == 9


def test_another_reference_is_refused(config: RunConfig, nano_tokenizer: Any) -> None:
    replica = Replica(config, nano_tokenizer)
    with pytest.raises(ModelError, match="is not the model that this run samples from") as caught:
        replica.play(play_of(config, policy=PolicyRef(digest="other")), [0])
    assert config.model.path in caught.value.message
    assert replica.worker.place().node in caught.value.message


def test_weights_are_loaded_when_the_policy_changes_and_only_then(
    config: RunConfig, nano_tokenizer: Any
) -> None:
    store = RunStore(config.run)
    store.write_bytes("model/config.json", b"{}")
    replica = Replica(config, nano_tokenizer)
    reference, trained = (
        play_of(config),
        play_of(config, policy=PolicyRef(digest="t", folder="model")),
    )
    replica.play(reference, [0])
    assert replica.engine.loaded == []
    for index, play in ((1, trained), (2, trained), (0, play_of(config, seed=1))):
        # The scripted engine has seen the requests of its earlier groups.
        replica.engine.requests.clear()
        replica.play(play, [index])
    assert replica.engine.loaded == [Path(store.path("model")), replica.folder]
