"""Replicas that die in the middle of a part: nothing is lost, nothing comes twice."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.integration.small_run import (
    GROUP_SIZE,
    NUM_TRAIN,
    ONE_BY_ONE,
    Driver,
    driver_of,
    finished_run,
    rollouts,
)

PARTS = "rollouts/part-*.parquet"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory on which the tests of this module follow one another."""
    return tmp_path_factory.mktemp("run") / "deaths"


@pytest.fixture(scope="module")
def finished(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory)


def kill_the_replica(driver: Driver) -> None:
    """SIGKILL, as the kernel does when memory runs out."""
    (replica,) = (process for process in driver.descendants() if is_replica(process))
    replica.kill()


def is_replica(process: psutil.Process) -> bool:
    try:
        return "ray::ReplicaWorker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def test_without_restarts_the_run_ends_and_says_how_to_go_on(run: Path) -> None:
    with driver_of(run, "rollout", *ONE_BY_ONE, "replicas.max_restarts=0") as driver:
        driver.wait_for_file(PARTS)
        kill_the_replica(driver)
        assert driver.wait() == 8, driver.output
        assert "run the same command to go on" in driver.output


def test_a_killed_replica_is_replaced_and_changes_nothing(run: Path, finished: Path) -> None:
    committed = {path.name: path.stat().st_mtime_ns for path in run.glob(PARTS)}
    with driver_of(run, "rollout", *ONE_BY_ONE, "replicas.max_restarts=1") as driver:
        driver.wait_for_file(PARTS, beside=len(committed))
        kill_the_replica(driver)
        assert driver.wait() == 0, driver.output

    after = {path.name: path.stat().st_mtime_ns for path in run.glob(PARTS)}
    assert committed.items() <= after.items()
    sampled, expected = rollouts(run), rollouts(finished)
    assert sampled.num_rows == NUM_TRAIN * GROUP_SIZE
    for column in ("prompt_id", "trajectory_index", "token_ids"):
        assert sampled[column].equals(expected[column])
