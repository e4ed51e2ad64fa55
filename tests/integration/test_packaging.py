"""What `pip install drift-ray` gives: built without the network, used far from the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "drift_ray"


def run(command: Sequence[str | Path], folder: Path) -> str:
    """Its stdout; in a folder and an environment that know nothing of the repository."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    result = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name not in hidden},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def build(target: str, source: Path, out: Path) -> Path:
    """With the backend of this environment; nothing is fetched."""
    run([sys.executable, "-m", "hatchling", "build", "-t", target, "-d", out], source)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made of the source distribution, as installers do where they find no wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return build("wheel", source, folder / "dist")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, and the packages of this one but for the repository."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index",
         "--no-deps", wheel], folder)  # fmt: skip
    (packages,) = folder.glob("lib/python*/site-packages")
    # Folders named in a .pth file bring none of their own: no editable install comes along.
    paths = {sysconfig.get_path("purelib"), *(path for path in sys.path if "site-packages" in path)}
    (packages / "others.pth").write_text("".join(f"{path}\n" for path in sorted(paths)))
    return folder


def files_of_the_package() -> set[str]:
    """All of them are needed: code, type marker, model, report, configurations."""
    found = {
        str(Path(folder, name).relative_to(ROOT))
        for folder, _, names in os.walk(PACKAGE, followlinks=True)
        for name in names
        if "__pycache__" not in folder
    }
    assert {
        "drift_ray/py.typed",
        "drift_ray/configs/demo.yaml",
        "drift_ray/nano/model/model.safetensors",
        "drift_ray/report/assets/page.html.j2",
    } <= found
    return found


def test_the_source_distribution_is_the_package_and_what_builds_it(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    beside = {".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    assert names == files_of_the_package() | beside


def test_the_wheel_is_the_package_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("METADATA"))
    assert {name for name in names if ".dist-info/" not in name} == files_of_the_package()
    assert "License-Expression: Apache-2.0" in metadata
    assert f"Version: {wheel.name.split('-')[1]}\n" in metadata


def test_the_command_works_far_from_the_repository(installed: Path, tmp_path: Path) -> None:
    command = installed / "bin" / "drift-ray"
    assert "Usage: drift-ray" in run([command, "--help"], tmp_path)
    assert "builtin:nano" in run([command, "example", "demo"], tmp_path)
    plan = run([command, "run", "builtin:demo", "--dry-run"], tmp_path)
    assert f"plan of {tmp_path}/runs/demo" in plan.replace("\n", "")
    assert not list(tmp_path.iterdir())


def test_the_data_of_the_package_come_along(installed: Path, tmp_path: Path) -> None:
    code = """
import drift_ray
from drift_ray.models import resolve_model
from drift_ray.report.render import _SCRIPTS, _asset
print(drift_ray.__file__, drift_ray.__version__)
print(resolve_model("builtin:nano"))
assert all(map(_asset, [*_SCRIPTS, "page.html.j2", "style.css"]))
"""
    origin, model = run([installed / "bin" / "python", "-c", code], tmp_path).splitlines()
    assert origin.startswith(str(installed))
    assert model.startswith(str(installed))
