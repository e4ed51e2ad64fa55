"""``make scale-demo``: nodes come and go with a run."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.integration.small_run import ROOT


@pytest.mark.slow
def test_nodes_come_and_go_with_a_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.drills.autoscaling"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout
    assert "nodes: 3 rollout, 0 trainer" in done.stdout
    assert "0 lost, 0 doubled" in done.stdout
