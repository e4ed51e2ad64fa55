"""A small run of the demo, and the ``drift-ray`` command in a process that a test can disturb."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from drift_ray.config import RunConfig
from drift_ray.config_file import load_config

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "jobs/configs/demo.yaml"
NUM_TRAIN, NUM_TEST, GROUP_SIZE = 96, 120, 8
BATCH_SIZE, CHECKPOINT_EVERY_STEPS = 32, 5
SMALL = (
    f"task.train.num_prompts={NUM_TRAIN}",
    f"task.test.num_prompts={NUM_TEST}",
    f"rollout.group_size={GROUP_SIZE}",
    "rollout.prompts_per_part=8",
    "evaluation.prompts_per_part=15",
    "training.num_workers=1",
    f"training.batch_size={BATCH_SIZE}",
    "training.learning_rate=5e-4",
    f"training.checkpoint_every_steps={CHECKPOINT_EVERY_STEPS}",
)
ONE_BY_ONE = ("replicas.num_replicas=1", "replicas.trajectories_in_flight=64")
"""Parts one after the other, so there is time to step in between two. The samples are the same."""

DEADLINE_S = 300.0


def small_config(run: Path, *overrides: str) -> RunConfig:
    return load_config(DEMO, [f"run={run}", *SMALL, *overrides])


def read_parts(run: Path, folder: str) -> pa.Table:
    return pa.concat_tables(map(pq.read_table, sorted(run.glob(f"{folder}/part-*.parquet"))))


def rollouts(run: Path) -> pa.Table:
    """All trajectories of a run, by prompt and index."""
    table = read_parts(run, "rollouts")
    return table.sort_by([("prompt_id", "ascending"), ("trajectory_index", "ascending")])


@dataclass(frozen=True, kw_only=True, slots=True)
class Driver:
    """A ``drift-ray`` command at work."""

    run: Path
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    @property
    def output(self) -> str:
        """What the command has printed so far, to both streams."""
        # The command writes at the offset that a seek would move.
        file = self.log.fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")

    def wait_for_file(self, pattern: str, *, beside: int = 0) -> None:
        """Return when the run directory holds more than ``beside`` files of this pattern."""
        self._wait_for(lambda: len(list(self.run.glob(pattern))) > beside, pattern)

    def wait_for_output(self, text: str) -> None:
        """Return when the command has printed this."""
        self._wait_for(lambda: text in self.output, text)

    def _wait_for(self, has_come: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not has_come():
            assert self.process.poll() is None, f"ended before {what}:\n{self.output}"
            assert time.monotonic() < deadline, f"no {what}:\n{self.output}"
            time.sleep(0.02)

    def descendants(self) -> list[psutil.Process]:
        """Every process of the command's own Ray."""
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def wait(self) -> int:
        """The exit code, when the command ends."""
        return int(self.process.wait(timeout=DEADLINE_S))


@contextmanager
def submission(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``jobs/submit_local.py`` in a session and a temporary folder of its own."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / "submit_local.py"), *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=120)


@contextmanager
def driver_of(run: Path, command: str, *overrides: str) -> Iterator[Driver]:
    """``drift-ray COMMAND`` on the small run, killed at the end of the block if still there."""
    arguments = [command, str(DEMO), f"run={run}", *SMALL, *overrides]
    # A file, not a pipe: nobody reads while the test waits for other files.
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "drift_ray.cli", *arguments],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield Driver(run=run, process=process, log=log)
        finally:
            process.kill()
            process.wait()
