"""The files through which a running stage and other commands talk."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from drift_ray.cli import main
from drift_ray.errors import DataError, StageError
from drift_ray.rollout.status import (
    SILENT_AFTER_S,
    ReplicaStatus,
    StageStatus,
    ask_to_scale,
    read_status,
    take_scale,
    write_status,
)
from drift_ray.store import RUN_FILE, SCALE_FILE, STATUS_FILE, RunStore


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunStore]:
    if request.param == "local":
        yield RunStore(str(tmp_path / "run"))
        return
    yield RunStore("memory://status-tests/run")
    memory = MemoryFileSystem()
    if memory.exists("/status-tests"):
        memory.rm("/status-tests", recursive=True)


REPLICA = ReplicaStatus(
    replica_id=3,
    state="up",
    node="host-a",
    pid=17,
    num_in_flight=5,
    num_trajectories=6,
    num_sampled_tokens=700,
)


def status(**changes: Any) -> StageStatus:
    """A stage at work, with one replica up and one on its way."""
    waiting = dataclasses.replace(REPLICA, replica_id=4, state="pending", node=None, pid=None)
    now = time.time()
    running = StageStatus(
        state="running",
        stage="rollout",
        driver="host-a:7",
        began_s=now - 60,
        time_s=now,
        num_done=1200,
        num_total=5000,
        num_solved=31,
        num_failures=2,
        tokens_per_s=41.5,
        time_left_s=90.0,
        num_replicas_wanted=2,
        replicas=[REPLICA, waiting],
    )
    return dataclasses.replace(running, **changes)


@pytest.mark.parametrize(
    "written",
    [status(), status(time_left_s=None, replicas=[]), status(state="stopped: no room")],
    ids=["running", "before anything is up", "stopped"],
)
def test_what_is_written_is_read(store: RunStore, written: StageStatus) -> None:
    write_status(store, status(num_done=1))
    write_status(store, written)
    found = read_status(store)
    assert found == written
    assert found.is_running == (written.state == "running")


def test_no_status_means_that_nothing_was_sampled(store: RunStore) -> None:
    with pytest.raises(StageError, match="nothing was sampled") as caught:
        read_status(store)
    assert str(store) in caught.value.message
    assert "drift-ray rollout" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"state": "running"',
        "[]",
        "7",
        "null",
        "{}",
        json.dumps({"replicas": []}),
        json.dumps(dataclasses.asdict(status()) | {"mood": "good"}),
        json.dumps(dataclasses.asdict(status()) | {"replicas": [{"replica_id": 1}]}),
        json.dumps(dataclasses.asdict(status()) | {"replicas": 7}),
    ],
)
def test_a_damaged_status_is_named(store: RunStore, text: str) -> None:
    store.write_bytes(STATUS_FILE, text.encode())
    with pytest.raises(DataError) as caught:
        read_status(store)
    assert store.path(STATUS_FILE) in caught.value.message
    assert caught.value.hint


def test_a_stage_is_silent_since_it_last_wrote() -> None:
    assert status(time_s=time.time() - 500).silent_s() >= 500
    assert status(time_s=time.time() + 500).silent_s() == 0  # another machine's clock


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "done"},
        {"state": "stopped: replicas died"},
        {"time_s": time.time() - SILENT_AFTER_S - 1},
    ],
    ids=["done", "stopped", "silent"],
)
def test_nothing_that_runs_cannot_be_scaled(store: RunStore, changes: dict[str, Any]) -> None:
    write_status(store, status(**changes))
    with pytest.raises(StageError, match="Nothing is sampling") as caught:
        ask_to_scale(store, 3)
    assert status(**changes).state in caught.value.message
    assert "replicas.num_replicas" in caught.value.hint
    assert not store.exists(SCALE_FILE)


def test_what_never_ran_cannot_be_scaled(store: RunStore) -> None:
    with pytest.raises(StageError, match="nothing was sampled"):
        ask_to_scale(store, 3)
    assert not store.exists(SCALE_FILE)


def test_the_last_wish_is_heard_once(store: RunStore) -> None:
    write_status(store, status())
    assert take_scale(store, since_s=0.0) is None
    ask_to_scale(store, 3)
    ask_to_scale(store, 5)
    assert take_scale(store, since_s=0.0) == 5
    assert take_scale(store, since_s=0.0) is None
    ask_to_scale(store, 7)
    assert take_scale(store, since_s=time.time() + 1) is None  # meant for a stage that has ended
    assert not store.exists(SCALE_FILE)


@pytest.mark.parametrize("wish", [{}, [], 7, {"num_replicas": 0}, {"num_replicas": "many"}])
def test_a_wish_that_is_none_is_dropped(store: RunStore, wish: object) -> None:
    store.write_json(SCALE_FILE, wish)
    assert take_scale(store, since_s=0.0) is None
    assert not store.exists(SCALE_FILE)


def made_run(folder: Path) -> RunStore:
    store = RunStore(str(folder))
    store.write_json(RUN_FILE, {})
    return store


def test_the_command_shows_progress_and_replicas(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    store = made_run(tmp_path / "run")
    write_status(store, status())
    assert main(["status", store.url]) == 0
    said = capsys.readouterr().out
    for fact in (
        "running",
        "1,200 of 5,000",
        "31 solved",
        "2 failed",
        "0:01:30 to go",
        "host-a:17",
    ):
        assert fact in said, said
    assert main(["status", "--json", store.url]) == 0
    assert json.loads(capsys.readouterr().out) == store.read_json(STATUS_FILE) | {"outcome": None}


def test_the_command_says_when_nobody_is_there_any_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = made_run(tmp_path / "run")
    write_status(store, status(time_s=time.time() - 3600, replicas=[]))
    assert main(["status", store.url]) == 0
    said = capsys.readouterr().out
    assert "no sign of life for 1:00:0" in said
    assert main(["status", made_run(tmp_path / "new").url]) == 8
    assert "nothing was sampled" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["status"], ["scale", "--replicas", "2"]])
def test_the_commands_want_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert main([*command, str(tmp_path)]) == 2
    assert "There is no run in" in capsys.readouterr().err


def test_the_command_asks_for_replicas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = made_run(tmp_path / "run")
    write_status(store, status())
    assert main(["scale", store.url, "--replicas", "0"]) == 2
    assert main(["scale", store.url]) == 2
    assert main(["scale", store.url, "--replicas", "4"]) == 0
    assert "4 replicas" in capsys.readouterr().out
    assert take_scale(store, since_s=0.0) == 4
    write_status(store, status(state="done"))
    assert main(["scale", store.url, "--replicas", "4"]) == 8
    assert take_scale(store, since_s=0.0) is None
