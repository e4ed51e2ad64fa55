"""How the stage knows that it is done, and what it tries again; Ray is not started."""

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


def test_progress_stops_quietly_without_a_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise StorageError("The network is gone.")

    monkeypatch.setattr(stage, "latest_metrics", fail)
    monkeypatch.setattr(stage, "flush_interval_s", lambda store: 0.0)
    stage._follow(RunStore(str(tmp_path)), "a", "metrics.jsonl", threading.Event())


class Trainer:
    """Fails at its first attempts."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.num_fits = 0

    def fit(self) -> None:
        self.num_fits += 1
        if self.failures:
            raise self.failures.pop(0)


def test_a_worker_that_dies_while_its_group_is_set_up_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released: list[tuple[int, set[str]]] = []
    monkeypatch.setattr(stage, "worker_places", lambda: {"another's"})
    monkeypatch.setattr(
        stage, "release_workers", lambda before: released.append((trainer.num_fits, before))
    )
    trainer = Trainer(ControllerError(ActorDiedError()), ActorDiedError())
    stage._fit(lambda: trainer, max_failures=2)
    assert trainer.num_fits == 3
    # Each time before the next attempt.
    assert released == [(1, {"another's"}), (2, {"another's"})]


@pytest.mark.parametrize(
    ("failure", "max_failures"),
    [
        (ControllerError(ActorDiedError()), 0),
        (ControllerError(DataError("Row 3.")), 3),
        (WorkerGroupError("…", {0: ActorDiedError()}), 3),  # Ray Train has tried these itself
    ],
)
def test_what_is_not_tried_again(
    failure: Exception, max_failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "worker_places", set)
    trainer = Trainer(failure)
    with pytest.raises(DriftRayError):
        stage._fit(lambda: trainer, max_failures=max_failures)
    assert trainer.num_fits == 1
