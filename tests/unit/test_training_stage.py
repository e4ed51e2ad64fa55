"""How the stage knows that it is done, and how it words what went wrong; Ray is not started."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, WorkerGroupError

from drift_ray.config import ModelConfig, PromptsConfig, RunConfig, TaskConfig
from drift_ray.errors import DataError, DriftRayError, StageError, StorageError
from drift_ray.store import RunStore
from drift_ray.training import SUMMARY_FILE, stage


def test_done_is_a_matter_of_the_digest(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    assert not stage.is_done(store, digest="a")
    store.write_json(SUMMARY_FILE, {"digest": "a"})
    assert stage.is_done(store, digest="a")
    assert not stage.is_done(store, digest="b")


def test_missing_input_is_found_before_ray_is_needed(tmp_path: Path) -> None:
    config = RunConfig(
        run=str(tmp_path),
        model=ModelConfig(path="unused"),
        task=TaskConfig(
            name="test",
            train=PromptsConfig(source="addition"),
            test=PromptsConfig(source="addition", split="test"),
        ),
    )
    with pytest.raises(StageError, match="no rollouts"):
        stage.run(config, RunStore(config.run), digest="a")


def test_an_error_of_ours_stays_itself() -> None:
    ours = StorageError("No space left.", "Free some.")
    peer = RuntimeError("Connection closed by peer [127.0.0.1]:1")
    assert stage._explain(WorkerGroupError("…", {0: peer, 1: ours})) is ours
    assert stage._explain(ControllerError(ours)) is ours


@pytest.mark.parametrize(
    "error", [StorageError("No space left to write x."), DataError("Row 3."), StageError("NaN.")]
)
def test_what_a_restart_cannot_mend_ends_the_training(error: DriftRayError) -> None:
    peer = RuntimeError("Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(ControllerError) as raised:
        stage._end_at_once().after_exception(None, {0: peer, 1: error})
    assert raised.value.controller_failure is error


@pytest.mark.parametrize("error", [StorageError("The network is gone."), MemoryError()])
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    stage._end_at_once().after_exception(None, {1: error})


def test_progress_stops_quietly_without_a_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise StorageError("The network is gone.")

    monkeypatch.setattr(stage, "latest_metrics", fail)
    monkeypatch.setattr(stage, "flush_interval_s", lambda store: 0.0)
    stage._follow(RunStore(str(tmp_path)), "a", "metrics.jsonl", threading.Event())


def test_the_cause_is_told_from_its_consequences() -> None:
    peer = RuntimeError("Connection closed by peer [127.0.0.1]:1")
    error = stage._explain(WorkerGroupError("…", {0: peer, 1: MemoryError("too much")}))
    assert isinstance(error, StageError)
    assert "worker 1: MemoryError: too much" in error.message
    assert "micro_batch_tokens" in error.hint


def test_a_dead_process_is_one_line() -> None:
    error = stage._explain(WorkerGroupError("…", {1: ActorDiedError()}))
    assert "worker 1: its process died" in error.message
    assert "\n" not in error.message
