"""One Ray and one finished run for all integration tests: they take longer than most of them."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.integration.small_run import DEMO, SMALL, submission


@pytest.fixture(scope="session")
def metrics_url() -> str:
    """Where the Ray of :func:`ray_session` shows its metrics."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/metrics"


@pytest.fixture(scope="session")
def ray_session(metrics_url: str) -> Iterator[None]:
    """A private Ray with 8 logical CPUs, whatever the machine has; ``ray`` is connected to it.

    Tests that need a Ray of another shape, or that end one, start their own process.
    """
    import ray

    # Not pytest's folder: the paths of Ray's sockets may have 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="drift-ray-"))
    ray.init(
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=str(folder),
        _metrics_export_port=urlsplit(metrics_url).port,
    )
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def finished_job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The small run, done as a job that nobody disturbed: its directory, and what was printed."""
    folder = tmp_path_factory.mktemp("finished")
    run = folder / "runs" / "small"
    with submission(folder, "--config", str(DEMO), "--run", str(run), *SMALL) as process:
        output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return run, output


@pytest.fixture(scope="session")
def finished(finished_job: tuple[Path, str]) -> Path:
    """A run directory in which everything is done; tests leave its files as they are."""
    return finished_job[0]
