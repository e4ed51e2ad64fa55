"""Metrics reach every tracker that was asked for, a resumed training goes on, secrets stay."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from drift_ray.config import RunConfig
from drift_ray.store import RunStore
from drift_ray.training.trackers import Trackers
from tests.unit.scripted import run_config

SECRET = "hf_secret"
METRICS = {"num_steps": 9, "loss": 0.5, "kl_ref": None, "num_samples": 64}


def config_with(folder: Path, *trackers: str) -> RunConfig:
    return run_config(
        folder,
        f"training.trackers=[{','.join(trackers)}]",
        f"replicas.engine.arguments.hf_token={SECRET}",
    )


def log(config: RunConfig, store: RunStore, steps: Iterable[int], *, loss: float = 0.5) -> None:
    with Trackers(config, store, "abc") as trackers:
        for step in steps:
            trackers.add({**METRICS, "step": step, "loss": loss})
        trackers.flush()


def read_tensorboard(folder: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_reads_what_a_resumed_training_wrote(tmp_path: Path) -> None:
    config, store = config_with(tmp_path, "tensorboard"), RunStore(str(tmp_path / "run"))
    log(config, store, range(6), loss=0.5)
    log(config, store, range(4, 8), loss=0.25)
    found = read_tensorboard(tmp_path / "run/tensorboard/abc")
    assert set(found) == {"training/loss", "training/num_samples"}
    assert found["training/loss"] == {step: 0.5 if step < 4 else 0.25 for step in range(8)}
    files = b"".join(f.read_bytes() for f in (tmp_path / "run").rglob("*") if f.is_file())
    assert SECRET.encode() not in files


def test_tensorboard_files_of_a_remote_run_are_uploaded(tmp_path: Path) -> None:
    config, store = config_with(tmp_path, "tensorboard"), RunStore("memory://tracked")
    log(config, store, range(3))
    files = fsspec.filesystem("memory").find("/tracked/tensorboard/abc")
    assert len(files) == 1
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / files[0].rsplit("/", 1)[1]).write_bytes(store.fs.cat_file(files[0]))
    assert read_tensorboard(copy)["training/loss"] == {0: 0.5, 1: 0.5, 2: 0.5}


def test_no_step_no_tracker(tmp_path: Path) -> None:
    config, store = config_with(tmp_path, "tensorboard"), RunStore(str(tmp_path / "run"))
    log(config, store, range(0))
    assert not (tmp_path / "run").exists()


class FakeWandb:
    """The part of its interface that is used, with the same names of arguments."""

    def __init__(self) -> None:
        self.started: dict[str, Any] = {}
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.exit_code: int | None = None

    def init(
        self, *, project: str, id: str, name: str, config: dict[str, Any], resume: str
    ) -> FakeWandb:
        self.started = {"project": project, "id": id, "name": name, "resume": resume}
        self.started["config"] = config
        return self

    def log(self, data: dict[str, float], step: int) -> None:
        self.lines.append((step, data))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    log(config_with(tmp_path, "wandb"), RunStore(str(tmp_path / "run")), range(2))
    assert wandb.started["id"] == "abc"
    assert wandb.started["resume"] == "allow"
    assert wandb.started["config"]["training"]["trackers"] == ["wandb"]
    assert SECRET not in str(wandb.started)
    assert wandb.lines == [
        (step, {"training/loss": 0.5, "training/num_samples": 64.0}) for step in range(2)
    ]
    assert wandb.exit_code == 0


def test_a_failed_training_is_marked_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    steps = (4 // left for left in (2, 1, 0))
    with pytest.raises(ZeroDivisionError):
        log(config_with(tmp_path, "wandb"), RunStore(str(tmp_path / "run")), steps)
    assert [step for step, _ in wandb.lines] == [2, 4]
    assert wandb.exit_code == 1


class FakeMlflow:
    """A tracking server in memory, behind the functions that are used."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []
        self.active: dict[str, Any] = {}
        self.unsent: list[tuple[int, dict[str, float]]] = []

    def set_experiment(self, name: str) -> None:
        self.experiment = name

    def search_runs(
        self, experiment_names: list[str], filter_string: str, max_results: int, output_format: str
    ) -> list[Any]:
        assert (experiment_names, output_format) == ([self.experiment], "list")
        tag, value = filter_string.removeprefix("tags.`").split("` = ")
        found = [run for run in self.runs if run["tags"][tag] == value.strip("'")]
        return [SimpleNamespace(info=SimpleNamespace(run_id=r["id"])) for r in found[:max_results]]

    def start_run(
        self,
        run_id: str | None = None,
        run_name: str | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        if run_id is None:
            run_id = f"run-{len(self.runs)}"
            self.runs.append({"id": run_id, "name": run_name, "tags": tags, "lines": []})
        self.active = next(run for run in self.runs if run["id"] == run_id)

    def log_dict(self, dictionary: dict[str, Any], artifact_file: str) -> None:
        self.active[artifact_file] = dictionary

    def log_metrics(self, metrics: dict[str, float], step: int, synchronous: bool) -> None:
        assert not synchronous
        self.unsent.append((step, metrics))

    def flush_async_logging(self) -> None:
        self.active["lines"] += self.unsent
        self.unsent = []

    def end_run(self, status: str) -> None:
        self.active["status"] = status


def test_mlflow_finds_its_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    config, store = config_with(tmp_path, "mlflow"), RunStore(str(tmp_path / "run"))
    log(config, store, range(2))
    log(config, store, range(2, 4))
    (run,) = mlflow.runs
    assert [step for step, _ in run["lines"]] == [0, 1, 2, 3]
    assert run["lines"][0][1] == {"training/loss": 0.5, "training/num_samples": 64.0}
    assert run["config.json"]["training"]["trackers"] == ["mlflow"]
    assert SECRET not in str(run)
    assert run["status"] == "FINISHED"
