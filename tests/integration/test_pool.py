"""The pool under Ray with a modelled engine: replicas come, go and die; work is done once."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from drift_ray.config import ModelConfig, ReplicaConfig
from drift_ray.errors import DriftRayError, StageError, StorageError
from drift_ray.models import BUILTIN_NANO
from drift_ray.rollout.dispatch import Dispatcher
from drift_ray.rollout.fleet import ReplicaState
from drift_ray.rollout.pool import ReplicaPool
from drift_ray.rollout.sampling import PartPlan, sample_missing
from drift_ray.rollout.status import ask_to_scale, read_status
from drift_ray.rollout.work import PartReport
from drift_ray.schema import FAILURE_SCHEMA, TRAJECTORY_SCHEMA
from drift_ray.store import RunStore
from tests.drills.sampler import GROUP_SIZE, NUM_PROMPTS, plan, undisturbed
from tests.modelled import ModelledEngine, make_modelled_engine, modelled

pytestmark = pytest.mark.usefixtures("ray_session")

SEED = 5
STEP_S = 0.02
NUM_TRAJECTORIES = NUM_PROMPTS * GROUP_SIZE


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(str(tmp_path / "run"))


def pool_of(store: RunStore, make_engine: Any = None, **settings: Any) -> ReplicaPool:
    config = ReplicaConfig.model_validate({"num_cpus": 0, **settings})
    model = ModelConfig(path=BUILTIN_NANO)
    return ReplicaPool(store.url, model, config, make_engine or modelled(STEP_S))


def sample(store: RunStore, pool: ReplicaPool, parts: PartPlan, max_failed_frac: float = 0) -> None:
    sample_missing(store, pool, parts, stage="rollout", max_failed_frac=max_failed_frac)


def tokens(store: RunStore) -> dict[tuple[str, int], list[int]]:
    found = {}
    for part in store.parts("rollouts"):
        columns = ["prompt_id", "trajectory_index", "token_ids", "num_in_group"]
        for row in store.read_table(part, TRAJECTORY_SCHEMA, columns).to_pylist():
            key = row["prompt_id"], row["trajectory_index"]
            assert key not in found
            assert row["num_in_group"] == GROUP_SIZE
            found[key] = row["token_ids"]
    return found


@pytest.fixture(scope="module")
def expected() -> dict[tuple[str, int], list[int]]:
    return {(t.prompt_id, t.trajectory_index): t.token_ids.tolist() for t in undisturbed(SEED)}


def watch(pool: ReplicaPool, look: Callable[[Dispatcher], None]) -> None:
    """Let ``look`` see the work at every step of the pool."""
    run = pool.run

    def watched(work: Dispatcher, play: Any) -> Iterator[PartReport | None]:
        for report in run(work, play):
            look(work)
            yield report

    pool.run = watched  # type: ignore[method-assign]


def test_replicas_join_and_leave_while_it_runs(store: RunStore, expected: Any) -> None:
    """Scaling up and down from outside: whoever leaves hands on what it has."""
    seen: list[int] = []
    # Slow enough that there is work left when the others are up.
    with pool_of(store, modelled(3 * STEP_S), num_replicas=1) as pool:

        def look(work: Dispatcher) -> None:
            seen.append(pool.fleet.num_up)
            done = NUM_PROMPTS - work.num_unfinished
            if done > 8 and max(seen) == 1 and pool.fleet.num_wanted == 1:
                pool.fleet.num_wanted = 3
            elif seen[-1] == 3 and pool.fleet.num_wanted == 3:
                pool.fleet.num_wanted = 1

        watch(pool, look)
        sample(store, pool, plan(SEED))
        assert max(seen) == 3
        assert len(pool.fleet) == 1
        assert pool.fleet.counts.num_trajectories == NUM_TRAJECTORIES  # nothing was played twice
    assert tokens(store) == expected


def test_a_wish_from_outside_is_heard(store: RunStore, expected: Any) -> None:
    with pool_of(store, num_replicas=1) as pool:
        asked = []

        def look(work: Dispatcher) -> None:
            if not asked and pool.fleet.num_up:
                with_status = read_status(store)
                assert with_status.is_running
                ask_to_scale(store, 2)
                asked.append(True)

        watch(pool, look)
        sample(store, pool, plan(SEED))
        assert pool.fleet.num_wanted == 2
    assert tokens(store) == expected
    status = read_status(store)
    assert (status.state, status.num_done) == ("done", NUM_TRAJECTORIES)
    assert status.num_replicas_wanted == 2
    with pytest.raises(StageError, match="Nothing is sampling"):
        ask_to_scale(store, 3)


def test_prometheus_sees_the_stage(store: RunStore, metrics_url: str) -> None:
    with pool_of(store, modelled(0.0), num_replicas=1) as pool:
        sample_missing(store, pool, plan(SEED), stage="metered", max_failed_frac=0)
        num_tokens = pool.fleet.counts.num_sampled_tokens
        wanted = {
            "drift_ray_trajectories_total": NUM_TRAJECTORIES,
            "drift_ray_sampled_tokens_total": num_tokens,
            "drift_ray_groups_left": 0,
        }
        deadline_s = time.monotonic() + 60  # Ray exports every few seconds
        while (seen := metered(metrics_url)) != wanted and time.monotonic() < deadline_s:
            time.sleep(0.5)
    assert seen == wanted


def metered(url: str) -> dict[str, float]:
    """What Ray shows of the stage called ``metered``, by metric."""
    with urllib.request.urlopen(url) as answer:
        lines = answer.read().decode().splitlines()
    mine = [line for line in lines if line.startswith("ray_drift_ray_") and '"metered"' in line]
    names = ("trajectories_total", "sampled_tokens_total", "groups_left")
    values = {line.split("{")[0].removeprefix("ray_"): float(line.split()[-1]) for line in mine}
    return {key: values[key] for key in (f"drift_ray_{name}" for name in names) if key in values}


def test_a_replica_that_has_no_time_to_finish_hands_its_work_back(
    store: RunStore, expected: Any
) -> None:
    with pool_of(store, num_replicas=2, drain_deadline_s=0) as pool:

        def look(work: Dispatcher) -> None:
            if pool.fleet.num_up == 2 and work.num_unfinished < NUM_PROMPTS - 8:
                pool.fleet.num_wanted = 1

        watch(pool, look)
        sample(store, pool, plan(SEED))
        assert len(pool.fleet) == 1
    assert tokens(store) == expected


def test_dead_replicas_are_replaced_and_change_nothing(store: RunStore, expected: Any) -> None:
    killed: list[int] = []
    with pool_of(store, num_replicas=2, max_group_deaths=100, max_restarts=100) as pool:

        def look(work: Dispatcher) -> None:
            done = NUM_PROMPTS - work.num_unfinished
            for replica in pool.fleet.in_state(ReplicaState.UP):
                at = replica.placement
                if at and at.pid not in killed and done > 32 * (len(killed) + 1) < NUM_PROMPTS:
                    os.kill(at.pid, signal.SIGKILL)
                    killed.append(at.pid)

        watch(pool, look)
        sample(store, pool, plan(SEED))
    assert len(killed) >= 3
    assert tokens(store) == expected


class Stuck(ModelledEngine):
    """Its first step never ends."""

    def step(self) -> Any:
        threading.Event().wait()


def stuck_once(flag: str, *args: Any, **settings: Any) -> ModelledEngine:
    engine = make_modelled_engine(*args, **settings)
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return engine
    engine.__class__ = Stuck
    return engine


def test_an_engine_that_hangs_is_replaced(store: RunStore, expected: Any, tmp_path: Path) -> None:
    make = partial(stuck_once, str(tmp_path / "flag"))
    with pool_of(store, make, num_replicas=1, stall_deadline_s=1) as pool:
        sample(store, pool, plan(SEED))
    assert tokens(store) == expected


class Crashing(ModelledEngine):
    """Raises when it is asked for a certain sum."""

    def submit(self, request: Any) -> None:
        if request.request_id.startswith(poison()):
            os.kill(os.getpid(), signal.SIGKILL)
        super().submit(request)


def poison() -> str:
    return next(iter(plan(SEED))).prompts[3].prompt_id


def crashing(*args: Any, **settings: Any) -> ModelledEngine:
    engine = make_modelled_engine(*args, **settings)
    engine.__class__ = Crashing
    return engine


def test_a_group_that_kills_its_replicas_fails_alone(store: RunStore, expected: Any) -> None:
    settings = {"num_replicas": 1, "max_group_deaths": 2, "trajectories_in_flight": 1}
    with pool_of(store, crashing, **settings) as pool:
        parts = PartPlan(
            [prompt for part, _ in zip(plan(SEED), "1", strict=False) for prompt in part.prompts],
            folder="rollouts",
            digest="poison",
            prompts_per_part=8,
            play=plan(SEED).play,
        )
        sample(store, pool, parts, max_failed_frac=0.5)
    (failed,) = store.parts("rollouts/failures")
    rows = store.read_table(failed, FAILURE_SCHEMA).to_pylist()
    assert {row["cause"] for row in rows} == {"replica"}
    assert {row["message"] for row in rows} == {"2 replicas died while they played it"}
    assert poison() in {row["prompt_id"] for row in rows}
    found = tokens(store)
    assert len(found) + len(rows) == 8 * GROUP_SIZE
    assert found.items() <= expected.items()


def test_graders_that_hang_raise_or_die_cost_their_trajectories_alone(
    store: RunStore, expected: Any
) -> None:
    (part,) = [part for part, _ in zip(plan(SEED), "1", strict=False)]
    parts = PartPlan(
        part.prompts,
        folder="rollouts",
        digest="moody",
        prompts_per_part=8,
        play=replace(plan(SEED).play, grader="tests.integration.graders:moody"),
    )
    with pool_of(store, num_replicas=1, grading_deadline_s=0.5) as pool:
        sample(store, pool, parts, max_failed_frac=1.0)
        # Enough is enough: by default the stage ends, and says how to go on.
        assert parts.forget_failures(store) == 1
        with pytest.raises(StageError, match="drift-ray rollout --retry-failed"):
            sample(store, pool, parts)
    fate = {"7": "deadline", "6": "grader", "1": "grader"}
    wanted = {prompt.prompt_id: fate.get(prompt.gold[-1]) for prompt in part.prompts}
    assert {*wanted.values()} == {None, "deadline", "grader"}
    (failed,) = store.parts("rollouts/failures")
    rows = store.read_table(failed, FAILURE_SCHEMA).to_pylist()
    assert {(row["prompt_id"], row["cause"]) for row in rows} == {
        (prompt_id, cause) for prompt_id, cause in wanted.items() if cause
    }
    assert all("bad luck" in row["trace"] for row in rows if "raised" in row["message"])
    assert {row["trajectory_index"] for row in rows} == set(range(GROUP_SIZE))
    # The tokens of a first turn do not depend on the grader; nobody was scored 0 for its moods.
    assert {key[0] for key in tokens(store)} == {
        name for name, cause in wanted.items() if not cause
    }


def test_an_environment_that_raises_costs_its_trajectories_alone(
    store: RunStore, expected: Any
) -> None:
    played = plan(SEED).play
    path = "tests.integration.graders:Stumbling"
    environment = played.environment.model_copy(update={"path": path})
    parts = PartPlan(
        next(iter(plan(SEED))).prompts,
        folder="rollouts",
        digest="stumbling",
        prompts_per_part=8,
        play=replace(played, environment=environment),
    )
    with pool_of(store, num_replicas=1) as pool:
        sample(store, pool, parts, max_failed_frac=1.0)
    (part,) = store.parts("rollouts")
    rows = store.read_table(part, TRAJECTORY_SCHEMA, ["prompt_id", "trajectory_index", "turns"])
    solved = {(row["prompt_id"], row["trajectory_index"]): row["turns"] for row in rows.to_pylist()}
    assert solved
    assert all(len(turns) == 1 and turns[0]["reward"] == 1.0 for turns in solved.values())
    (failed,) = store.parts("rollouts/failures")
    failures = store.read_table(failed, FAILURE_SCHEMA).to_pylist()
    assert len(solved) + len(failures) == 8 * GROUP_SIZE
    assert {(row["cause"], row["turn_index"]) for row in failures} == {("environment", 1)}
    assert all("lost my way" in row["message"] and row["trace"] for row in failures)


def test_deaths_in_a_row_end_the_stage(store: RunStore) -> None:
    settings = {"num_replicas": 1, "max_group_deaths": 100, "max_restarts": 1}
    first = next(iter(plan(SEED))).prompts[0].prompt_id
    with (
        pool_of(store, partial(dying, first), **settings) as pool,
        pytest.raises(StageError, match="without finishing a group"),
    ):
        sample(store, pool, plan(SEED))


class Dying(ModelledEngine):
    def step(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def dying(_: str, *args: Any, **settings: Any) -> ModelledEngine:
    engine = make_modelled_engine(*args, **settings)
    engine.__class__ = Dying
    return engine


def test_a_late_duplicate_changes_nothing(store: RunStore, expected: Any) -> None:
    with pool_of(store, modelled(0.0), num_replicas=1) as pool:
        sample(store, pool, plan(SEED))
        before = {name: store.fs.modified(store.path(name)) for name in store.parts("rollouts")}
        # A driver that does not know what is committed: as one that was thought dead.
        blind = RunStore(store.url)
        blind.parts = lambda folder: []  # type: ignore[method-assign]
        sample_missing(blind, pool, plan(SEED), stage="rollout", max_failed_frac=0)
    assert {n: store.fs.modified(store.path(n)) for n in store.parts("rollouts")} == before
    assert tokens(store) == expected


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_loses_nothing_that_is_committed(tmp_path: Path, expected: Any) -> None:
    folder = tmp_path / "disk"
    with small_disk(folder, "160k"):
        store = RunStore(str(folder / "run"))
        with pool_of(store, num_replicas=1) as pool:
            with pytest.raises(StorageError, match="No space left"):
                sample(store, pool, plan(SEED))
            committed = tokens(store)
            assert 0 < len(committed) < NUM_TRAJECTORIES
            assert committed.items() <= expected.items()
            assert not list(folder.glob("run/rollouts/.*"))
            subprocess.run(["mount", "-o", "remount,size=4m", str(folder)], check=True)
            pool.stop()
            sample(store, pool, plan(SEED))
        assert tokens(store) == expected


def test_too_little_room_ends_the_stage_in_time(store: RunStore) -> None:
    settings = {"num_replicas": 1, "label_selector": {"at": "nowhere"}, "max_wait_s": 0.5}
    started = time.monotonic()
    with (
        pool_of(store, **settings) as pool,
        pytest.raises(DriftRayError, match=r"room for 0 replicas .*nowhere"),
    ):
        sample(store, pool, plan(SEED))
    assert time.monotonic() - started < 60
    assert read_status(store).state.startswith("stopped: For 0.5 s the cluster had room for 0")
