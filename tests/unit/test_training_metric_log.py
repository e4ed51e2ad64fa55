"""One line a step, whatever was interrupted and repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from drift_ray.store import RunStore
from drift_ray.training.metric_log import MetricLog, latest_metrics, log_name, publish_metrics


def write(store: RunStore, digest: str, steps: range) -> None:
    log = MetricLog(store, digest)
    for step in steps:
        log.add({"step": step, "loss": step / 2})
    log.flush()


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_repeated_steps_are_replaced_and_other_trainings_stay(tmp_path: Path) -> None:
    store, path = RunStore(str(tmp_path)), tmp_path / "metrics.jsonl"
    other = {"stage": "rollout", "step": 7}
    store.append_metrics([other])
    write(store, "old", range(5))
    write(store, "new", range(8))
    with path.open("a") as file:
        file.write('{"stage": "training", "st')  # killed while it wrote
    write(store, "new", range(6, 9))

    assert read(path)[0] == other
    assert [(r["digest"], r["step"]) for r in read(path)[1:]] == [
        *(("old", s) for s in range(5)),
        *(("new", s) for s in range(9)),
    ]


def test_a_resume_with_nothing_left_keeps_the_lines(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    write(store, "a", range(3))
    write(store, "a", range(0))
    assert len(read(tmp_path / "metrics.jsonl")) == 3


def test_latest_is_of_the_digest(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    assert latest_metrics(store, "a") is None
    write(store, "a", range(200))
    store.append_metrics([{"stage": "evaluation"}])
    latest = latest_metrics(store, "a")
    assert latest is not None
    assert (latest["step"], latest["loss"]) == (199, 99.5)
    assert latest_metrics(store, "b") is None


def test_lines_beside_the_rollouts_are_moved_when_those_have_ended(tmp_path: Path) -> None:
    store, name = RunStore(str(tmp_path)), log_name("a", beside_rollouts=True)
    publish_metrics(store, "a")
    assert not store.exists("metrics.jsonl")
    log = MetricLog(store, "a", name)
    log.add({"step": 0, "loss": 1.0})
    store.append_metrics([{"stage": "rollout"}])
    log.add({"step": 1, "loss": 0.5})
    log.flush()
    latest = latest_metrics(store, "a", name)
    assert latest is not None
    assert latest["step"] == 1
    assert latest_metrics(store, "a") is None

    publish_metrics(store, "a")
    assert [record.get("step") for record in read(tmp_path / "metrics.jsonl")] == [None, 0, 1]
    assert not store.exists(name)
