"""A cluster that grows and shrinks with a run: Ray's fake multi-node provider and autoscaler v2.

Run as ``python -m tests.drills.autoscaling`` (``make scale-demo``). A private head on this machine
has no nodes but itself. A run of the demo asks for three replicas: their nodes appear. ``drift-ray
scale`` asks for one: two nodes go. A node for trainers appears when there are weights to train on
and not before. At the end all nodes are gone, and no trajectory is lost or doubled.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import ray
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FakeMultiNodeProvider,
)

from drift_ray.errors import DriftRayError
from drift_ray.rollout.status import read_status
from drift_ray.store import RunStore

ROOT = Path(__file__).resolve().parents[2]
NUM_PROMPTS, GROUP_SIZE, NUM_REPLICAS = 800, 8, 3
START_ATTEMPTS, DEADLINE_S = 3, 1200.0
LABELS = {"rollout": "drift-ray/rollout", "trainer": "drift-ray/training"}
"""The label of each group, as in ``cluster/``; its value is ``enabled``."""
OVERRIDES = (
    f"task.train.num_prompts={NUM_PROMPTS}",
    "task.test.num_prompts=60",
    f"rollout.group_size={GROUP_SIZE}",
    "rollout.prompts_per_part=8",
    f"replicas.num_replicas={NUM_REPLICAS}",
    "replicas.trajectories_in_flight=16",  # so that there is time to scale
    "replicas.label_selector={drift-ray/rollout: enabled}",
    "training.num_workers=1",
    "training.batch_size=256",
    "training.label_selector={drift-ray/training: enabled}",
)


def main() -> int:
    """Watch one run; returns 0 if all came as it should."""
    with (
        tempfile.TemporaryDirectory(prefix="drift-scale-", ignore_cleanup_errors=True) as name,
        head(Path(name)) as address,
    ):
        ray.init(address, log_to_driver=False, logging_level="ERROR")
        try:
            watch_a_run(Path(name) / "run", address)
        finally:
            ray.shutdown()
    return 0


def watch_a_run(run: Path, address: str) -> None:
    with run.with_suffix(".log").open("wb") as log:
        command = [sys.executable, "-m", "drift_ray.cli", "run", "jobs/configs/demo.yaml"]
        driver = subprocess.Popen(
            [*command, f"run={run}", *OVERRIDES],
            cwd=ROOT,
            env=os.environ | {"RAY_ADDRESS": address},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    nodes = Nodes(run)
    try:
        nodes.wait_for(lambda: num_up(run) == NUM_REPLICAS, "all replicas are up", driver)
        assert nodes.now == {"rollout": NUM_REPLICAS}, nodes.now
        subprocess.run(
            [sys.executable, "-m", "drift_ray.cli", "scale", str(run), "--replicas", "1"],
            cwd=ROOT,
            check=True,
        )
        nodes.wait_for(lambda: nodes.now["rollout"] == 1, "one rollout node is left", driver)
        assert stage(run) == "rollout", "the rollouts ended before two nodes had gone"
        nodes.wait_for(lambda: nodes.now["trainer"] == 1, "a trainer node is there", driver)
        assert list(run.glob("weights/*/summary.json"))
        nodes.wait_for(lambda: driver.poll() is not None, "the run has ended")
        assert driver.returncode == 0, log_of(run)
        nodes.wait_for(lambda: not nodes.now.total(), "all nodes are gone")
    except BaseException:
        print(log_of(run))
        raise
    finally:
        nodes.stop()
        driver.kill()
        driver.wait()
    assert not nodes.trainers_without_weights
    verify(run)


def verify(run: Path) -> None:
    """Every trajectory that was asked for is there, once."""
    found = Counter[tuple[str, int]]()
    for part in run.glob("rollouts/part-*"):
        columns = pq.read_table(part, columns=["prompt_id", "trajectory_index"]).to_pylist()
        found.update((row["prompt_id"], row["trajectory_index"]) for row in columns)
    num_lost = NUM_PROMPTS * GROUP_SIZE - len(found)
    num_doubled = found.total() - len(found)
    print(f"{len(found)} trajectories: {num_lost} lost, {num_doubled} doubled")
    assert num_lost == num_doubled == 0
    assert (run / "model" / "drift_ray.json").exists()


def num_up(run: Path) -> int:
    """Replicas that sample, by the run's status."""
    try:
        return sum(each.state == "up" for each in read_status(RunStore(str(run))).replicas)
    except DriftRayError:
        return 0  # nothing has begun


def stage(run: Path) -> str:
    status = read_status(RunStore(str(run)))
    return status.stage if status.is_running else f"{status.stage}, over"


def log_of(run: Path) -> str:
    return run.with_suffix(".log").read_text(errors="replace")


@dataclass(slots=True)
class Nodes:
    """Watches which nodes come and go, and says so."""

    run: Path
    now: Counter[str] = field(default_factory=Counter)
    """Nodes of each group."""
    trainers_without_weights: bool = False
    _began_s: float = field(default_factory=time.monotonic)
    _end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        assert self._thread
        self._thread.join()

    def wait_for(
        self,
        has_come: Callable[[], bool],
        what: str,
        driver: subprocess.Popen[bytes] | None = None,
    ) -> None:
        while not has_come():
            assert driver is None or driver.poll() is None, f"the run ended before {what}"
            assert time.monotonic() - self._began_s < DEADLINE_S, f"not in time: {what}"
            time.sleep(0.2)
        self._say(what)

    def _watch(self) -> None:
        while not self._end.wait(0.2):
            alive = [each["Labels"] for each in ray.nodes() if each["Alive"]]
            now = Counter(
                group for labels in alive for group, label in LABELS.items() if label in labels
            )
            if now != self.now:
                self.now = now
                counts = ", ".join(f"{now[group]} {group}" for group in LABELS)
                self._say(f"nodes: {counts}")
            if now["trainer"] and not list(self.run.glob("weights/*/summary.json")):
                self.trainers_without_weights = True

    def _say(self, what: str) -> None:
        print(f"{time.monotonic() - self._began_s:6.1f} s  {what}", flush=True)


@contextmanager
def head(folder: Path) -> Iterator[str]:
    """A head that starts nodes on this machine when they are asked for; yields its address."""
    for attempt in range(START_ATTEMPTS):
        address = f"{ray.util.get_node_ip_address()}:{free_port()}"
        log = folder / f"head-{attempt}.log"
        process = start_head(folder / f"ray-{attempt}", address, log)
        try:
            if has_started(process, log):
                yield address
                return
        finally:
            stop_head(process)
        print("the head did not start in time, trying again", flush=True)
    raise RuntimeError(log.read_text(errors="replace"))


def start_head(folder: Path, address: str, log: Path) -> subprocess.Popen[bytes]:
    config = log.with_suffix(".json")
    config.write_text(json.dumps(cluster(address)))
    with log.open("wb") as output:
        return subprocess.Popen(
            [
                str(Path(sys.executable).with_name("ray")),
                *("start", "--head", "--block", "--disable-usage-stats"),
                *("--num-cpus=0", "--include-dashboard=false"),
                f"--autoscaling-config={config}",
                f"--port={address.rpartition(':')[2]}",
                f"--temp-dir={folder}",
                f"--dashboard-agent-listen-port={free_port()}",
                f"--ray-client-server-port={free_port()}",
            ],
            env=os.environ
            | {
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "RAY_FAKE_CLUSTER": "1",
                "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # the run has ended before its head
                "RAY_enable_autoscaler_v2": "1",
                "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def has_started(process: subprocess.Popen[bytes], log: Path) -> bool:
    """Wait until a head says that it is there; False if it gives up, as on a busy machine."""
    while "Ray runtime started" not in log.read_text(errors="replace"):
        if process.poll() is not None:
            return False
        time.sleep(0.2)
    return True


def stop_head(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    # The autoscaler's nodes outlive it, unless somebody looks after them.
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.wait(timeout=60)
    for each in family:
        with suppress(psutil.NoSuchProcess):
            each.kill()


def cluster(address: str) -> dict[str, object]:
    """The cluster as ``ray up`` would describe it: two groups, as in ``cluster/``."""
    groups = {
        name: {
            "resources": {"CPU": 1},  # a replica or a trainer a node
            "labels": {label: "enabled"},
            "node_config": {},
            "min_workers": 0,
            "max_workers": NUM_REPLICAS if name == "rollout" else 1,
        }
        for name, label in LABELS.items()
    }
    return {
        "cluster_name": "drift-ray-scale-demo",
        "max_workers": NUM_REPLICAS + 1,
        "idle_timeout_minutes": 0.3,  # longer than a replica takes to come to its node
        "upscaling_speed": 10.0,
        "provider": {
            # By its own type name, Ray looks for a file of defaults that its wheel lacks.
            "type": "external",
            "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}",
            "gcs_address": address,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "use_node_id_as_ip": True,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "file_mounts": {},
        "cluster_synced_files": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            **groups,
        },
    }


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
