"""One run directory that is filled while what fills it is killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

from drift_ray.errors import DriftRayError
from drift_ray.rollout.status import read_status
from drift_ray.steps import Stage
from drift_ray.store import RunStore
from tests.drills.driver import NUM_REPLICAS, NUM_TRAINERS, REPLICA, TRAINER
from tests.drills.outcome import Tally

ROOT = Path(__file__).resolve().parents[2]
HEAD = {"num_cpus": 1, "include_dashboard": False}
"""Fewer CPUs than replicas and trainers want at once: they take turns."""
NODE = {"num_cpus": 1, "resources": {REPLICA: NUM_REPLICAS / 2, TRAINER: NUM_TRAINERS / 2}}
NUM_NODES = 2
DEADLINE_S = 900.0
FIRST_KILL_S = 4.0
"""After a round's start; sooner there is nothing to kill."""
SAMPLING_KILLS = ("replica", "replica", "raylet", "driver")
TRAINING_KILLS = ("trainer", "trainer", "trainer", "raylet", "driver")
"""What a kill hits, with the odds it has."""
SAMPLING_GAP_S = (0.3, 3.0)
TRAINING_GAP_S = (0.0, 20.0)
"""Since the last kill, and since trainers are there: they load and train within this time."""


class Round:
    """A run directory, its driver, and the cluster that both are at the mercy of."""

    def __init__(
        self,
        cluster: Cluster,
        run: Path,
        seed: int,
        rng: random.Random,
        *,
        stages: tuple[Stage, ...],
        bucket: str | None = None,
    ) -> None:
        self.store = RunStore(f"s3://{bucket}/{run.name}" if bucket else str(run))
        self._cluster = cluster
        self._log = run.with_suffix(".log")
        self._seed = seed
        self._rng = rng
        self._stages = stages
        self._next_s = time.monotonic() + FIRST_KILL_S
        self._trainers: set[int] = set()
        self._driver = self._start_driver()

    def play(self, tally: Tally, *, sampling_kills: int, training_kills: int) -> None:
        """Go on until all is done, with at most so many kills on the way."""
        began_s = time.monotonic()
        try:
            self._play(tally, sampling_kills, training_kills, began_s + DEADLINE_S)
        finally:
            if self._driver.poll() is None:
                self._driver.kill()
                self._driver.wait()
        tally.wall_s += time.monotonic() - began_s

    def _play(
        self, tally: Tally, sampling_kills: int, training_kills: int, deadline_s: float
    ) -> None:
        left = {self._kill_sampling: sampling_kills, self._kill_training: training_kills}
        while (code := self._driver.poll()) is None or code != 0:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"a round did not end; see {self._log}")
            if code is not None and code != -signal.SIGKILL:
                raise RuntimeError(f"the driver ended with {code}; see {self._log}")
            if code is not None:
                self._driver = self._start_driver()
            self.restore_nodes()
            if kind := self._kill_if_due(left):
                tally.kills[kind] += 1
            time.sleep(0.1)

    def restore_nodes(self) -> None:
        for _ in range(NUM_NODES - len(self._cluster.worker_nodes)):
            try:
                self._cluster.add_node(**NODE)
            except Exception as error:  # Ray has no type for it; a busy machine is no finding
                print(f"a node did not start, trying again: {error}", flush=True)

    def _start_driver(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.drills.driver", self.store.url, str(self._seed)]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [*command, *self._stages],
                cwd=ROOT,
                env=os.environ | {"RAY_ADDRESS": self._cluster.address},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _kill_if_due(self, left: dict[Callable[[], str | None], int]) -> str | None:
        for kill in left:
            if left[kill] and time.monotonic() > self._next_s and (kind := kill()):
                left[kill] -= 1
                return kind
        return None

    def _kill_sampling(self) -> str | None:
        """Kill something while replicas are at work; says what it was."""
        pids = self._replicas()
        if not pids:
            return None
        self._next_s = time.monotonic() + self._rng.uniform(*SAMPLING_GAP_S)
        return self._kill(self._rng.choice(SAMPLING_KILLS), pids)

    def _kill_training(self) -> str | None:
        """Kill something while trainers load or train; says what it was."""
        pids = self._group_of_trainers()
        if not pids:
            self._next_s = time.monotonic() + 0.5  # looking through all processes takes its time
            return None
        if set(pids) != self._trainers:  # they have just begun
            self._trainers = set(pids)
            self._next_s = time.monotonic() + self._rng.uniform(*TRAINING_GAP_S)
            return None
        return self._kill(self._rng.choice(TRAINING_KILLS), pids)

    def _kill(self, kind: str, pids: list[int]) -> str | None:
        if kind == "driver" and self._driver.poll() is None:
            self._driver.kill()
            self._driver.wait()
        elif kind == "raylet" and self._cluster.worker_nodes:
            node = self._rng.choice(sorted(self._cluster.worker_nodes, key=id))
            self._cluster.remove_node(node, allow_graceful=False)
        elif kind in ("replica", "trainer"):
            os.kill(self._rng.choice(pids), signal.SIGKILL)
        else:
            return None
        return kind

    def _replicas(self) -> list[int]:
        """Process ids of replicas at work, by the driver's last status."""
        try:
            status = read_status(self.store)
        except DriftRayError:
            return []  # not begun, or the storage does not answer
        return [
            each.pid
            for each in status.replicas
            if status.is_running
            and each.state == "up"
            and each.pid is not None
            and _is_replica(each.pid)
        ]

    def _group_of_trainers(self) -> list[int]:
        """Process ids of all trainers, once all of a group are there and none of the last."""
        pids = [
            process.pid
            for process in psutil.Process().children(recursive=True)
            if "RayTrainWorker" in _command(process.pid)
        ]
        is_whole = len(pids) == NUM_TRAINERS
        is_spent = 0 < len(self._trainers & set(pids)) < NUM_TRAINERS
        return pids if is_whole and not is_spent else []


def _is_replica(pid: int) -> bool:
    return "ReplicaWorker" in _command(pid)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
