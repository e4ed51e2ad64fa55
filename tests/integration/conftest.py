"""One Ray for all integration tests: starting it takes longer than most of them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
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
    )
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
