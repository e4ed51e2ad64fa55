"""One Ray for all integration tests: starting it takes longer than most of them."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest


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
