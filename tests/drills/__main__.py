"""Random kills of replicas, raylets and the driver; then nothing may be lost and nothing doubled.

Run as ``python -m tests.drills [--kills N] [--seed S] [--s3]`` (``make drill``). With ``--s3`` the
run directories lie on an S3 server on this machine, of whose answers one in twenty is an error, or
is cut off before or after the server has done what was asked. Works in rounds: each
fills a run directory of its own on a private three-node cluster on this machine, with replicas
whose engine is modelled, while processes are killed with SIGKILL. A round ends when the work is
done; its trajectories are then compared with those of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
from ray.cluster_utils import Cluster

from drift_ray.errors import DriftRayError
from drift_ray.rollout.status import read_status
from drift_ray.schema import TRAJECTORY_SCHEMA
from drift_ray.store import RunStore
from tests.drills.sampler import NUM_REPLICAS, RESOURCE, undisturbed

ROOT = Path(__file__).resolve().parents[2]
NUM_NODES = 2
ROUND_DEADLINE_S = 600.0
KINDS = ("replica", "replica", "raylet", "driver")
"""What a kill hits, with the odds it has."""


@dataclass(slots=True)
class Tally:
    """What a drill has done and found."""

    kills: Counter[str] = field(default_factory=Counter)
    num_trajectories: int = 0
    num_lost: int = 0
    num_doubled: int = 0
    num_different: int = 0

    @property
    def clean(self) -> bool:
        return not (self.num_lost or self.num_doubled or self.num_different)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}s" for kind, count in sorted(self.kills.items()))
        return (
            f"{self.kills.total()} kills ({kinds or 'none'}), "
            f"{self.num_trajectories} trajectories: {self.num_lost} lost, "
            f"{self.num_doubled} doubled, {self.num_different} different"
        )


class Round:
    """One run directory, its driver, and the cluster that both are at the mercy of."""

    def __init__(
        self,
        cluster: Cluster,
        run: Path,
        seed: int,
        rng: random.Random,
        bucket: str | None = None,
    ) -> None:
        self._cluster = cluster
        self._run = run
        self._store = RunStore(f"s3://{bucket}/{run.name}" if bucket else str(run))
        self._seed = seed
        self._rng = rng
        self._driver = self._start_driver()

    def play(self, tally: Tally, num_kills: int) -> None:
        """Go on until the work is done, with at most this many kills on the way."""
        deadline_s = time.monotonic() + ROUND_DEADLINE_S
        next_s = time.monotonic() + 4.0
        while (code := self._driver.poll()) is None or code != 0:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"round {self._seed} did not end; see {self._log}")
            if code is not None and code != -signal.SIGKILL:
                raise RuntimeError(f"the driver ended with {code}; see {self._log}")
            if code is not None:
                self._driver = self._start_driver()
            self._restore_nodes()
            if num_kills and time.monotonic() > next_s and (kind := self._kill()):
                tally.kills[kind] += 1
                num_kills -= 1
                next_s = time.monotonic() + self._rng.uniform(0.3, 3.0)
            time.sleep(0.1)

    def verify(self, tally: Tally) -> None:
        """Compare what is committed with what nobody disturbed."""
        expected = {(t.prompt_id, t.trajectory_index): t for t in undisturbed(self._seed)}
        found = Counter[tuple[str, int]]()
        columns = ["prompt_id", "trajectory_index", "token_ids"]
        for part in self._store.parts("rollouts"):
            for row in self._store.read_table(part, TRAJECTORY_SCHEMA, columns).to_pylist():
                key = row["prompt_id"], row["trajectory_index"]
                found[key] += 1
                same = key in expected and expected[key].token_ids.tolist() == row["token_ids"]
                tally.num_different += not same
        tally.num_trajectories += len(found)
        tally.num_lost += len(expected.keys() - found.keys())
        tally.num_doubled += sum(count - 1 for count in found.values())

    @property
    def _log(self) -> Path:
        return self._run.with_suffix(".log")

    def _start_driver(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.drills.sampler"]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [*command, self._store.url, self._cluster.address, str(self._seed)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _restore_nodes(self) -> None:
        for _ in range(NUM_NODES - len(self._cluster.worker_nodes)):
            try:
                self._cluster.add_node(num_cpus=0, resources={RESOURCE: NUM_REPLICAS / 2})
            except Exception as error:  # Ray has no type for it; a busy machine is no finding
                print(f"a node did not start, trying again: {error}", flush=True)

    def _kill(self) -> str | None:
        """Kill something while replicas are at work; says what it was."""
        pids = self._replicas()
        if not pids:
            return None
        kind = self._rng.choice(KINDS)
        if kind == "driver" and self._driver.poll() is None:
            self._driver.kill()
            self._driver.wait()
        elif kind == "raylet" and self._cluster.worker_nodes:
            node = self._rng.choice(sorted(self._cluster.worker_nodes, key=id))
            self._cluster.remove_node(node, allow_graceful=False)
        elif kind == "replica":
            os.kill(self._rng.choice(pids), signal.SIGKILL)
        else:
            return None
        return kind

    def _replicas(self) -> list[int]:
        """Process ids of replicas at work, by the driver's last status."""
        try:
            replicas = read_status(self._store).replicas
        except DriftRayError:
            return []  # not begun, or the storage does not answer
        return [
            each.pid
            for each in replicas
            if each.state == "up" and each.pid is not None and _is_replica(each.pid)
        ]


def _is_replica(pid: int) -> bool:
    try:
        return "ReplicaWorker" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


@contextmanager
def unreliable_s3(seed: int) -> Iterator[str]:
    """A server as the environment names it; yields its bucket, of which clients read and write."""
    from tests.s3_server import BUCKET, ENVIRONMENT, Fault, faulty_s3

    rng = random.Random(seed)
    faults: tuple[Fault, ...] = ("503", "cut before", "cut after")
    with faulty_s3() as server:
        os.environ |= {**ENVIRONMENT, "AWS_ENDPOINT_URL_S3": server.url}
        fsspec.filesystem("s3").mkdir(BUCKET)
        server.choose = lambda method, path: rng.choice(faults) if rng.random() < 0.05 else None
        yield BUCKET


def drill(num_kills: int, seed: int, bucket: str | None = None) -> Tally:
    """Kill this often, in as many rounds as it takes."""
    rng = random.Random(seed)
    tally = Tally()
    folder = Path(tempfile.mkdtemp(prefix="drift-drill-"))
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "temp_dir": str(folder / "r")},
    )
    try:
        number = 0
        while tally.kills.total() < num_kills:
            round_ = Round(cluster, folder / f"run-{number}", seed + number, rng, bucket)
            round_.play(tally, num_kills - tally.kills.total())
            round_.verify(tally)
            number += 1
            print(f"round {number}: {tally}", flush=True)
        return tally
    finally:
        cluster.shutdown()
        if tally.clean:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"run directories and logs are kept in {folder}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/drill.json"))
    parser.add_argument("--s3", action="store_true", help="on an S3 server that often fails")
    args = parser.parse_args()
    with unreliable_s3(args.seed) if args.s3 else nullcontext() as bucket:
        tally = drill(args.kills, args.seed, bucket)
    print(tally)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        json.dumps(
            {
                "kills": tally.kills,
                "num_trajectories": tally.num_trajectories,
                "lost": tally.num_lost,
                "doubled": tally.num_doubled,
                "different": tally.num_different,
            },
            indent=2,
        )
    )
    return 0 if tally.clean else 1


if __name__ == "__main__":
    sys.exit(main())
