"""Random kills of replicas, trainers, raylets and the driver; then all must be as if none had been.

Run as ``python -m tests.drills [--kills N] [--seed S] [--s3] [--rollouts-only]`` (``make drill``).
Works in rounds on a private three-node cluster on this machine. Each fills a run directory of its
own: rollouts by replicas whose engine is modelled, weights, and two trainers of the nano model.
Nobody disturbs the first. In the others processes are killed with SIGKILL, until there were as many
kills as wanted. No trajectory may be lost, doubled or different, and no parameter of the model
different by more than float32's rounding (relative 1e-5).

With ``--s3`` the run directories lie on an S3 server on this machine, of whose answers one in
twenty is an error, or is cut off before or after the server has done what was asked.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import fsspec
from ray.cluster_utils import Cluster
from rich.console import Console

from drift_ray.steps import Stage
from tests.drills.outcome import Tally, read_model, table
from tests.drills.round import HEAD, Round
from tests.drills.sampler import undisturbed

KILLS_A_ROUND = 12
"""At most."""
TRAINING_SHARE = 1 / 3
"""Of them, while it trains; the others while it samples."""
MOST_MISSED = 3
"""Rounds in a row without any kill, after which there is no next one."""
ALL_STAGES = (Stage.ROLLOUT, Stage.WEIGH, Stage.TRAIN)


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


def drill(
    num_kills: int, seed: int, *, stages: tuple[Stage, ...], bucket: str | None = None
) -> list[Tally]:
    """Kill this often, in as many rounds as it takes; returns what each found.

    Ends with the first round that is not as the undisturbed one, or with Ctrl-C; keeps files then.
    """
    folder = Path(tempfile.mkdtemp(prefix="drift-drill-"))
    head = {**HEAD, "temp_dir": str(folder / "r")}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    rounds: list[Tally] = []
    is_over = False
    try:
        for each in _rounds(cluster, folder, num_kills, seed, stages=stages, bucket=bucket):
            rounds.append(each)
            print(f"round {len(rounds) - 1}: {each} ({each.wall_s:.0f} s)", flush=True)
            if not each.clean:
                return rounds
        is_over = True
        return rounds
    except KeyboardInterrupt:
        print(f"interrupted after {len(rounds)} rounds, which follow", flush=True)
        return rounds
    finally:
        cluster.shutdown()
        if is_over:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"run directories and logs are kept in {folder}", flush=True)


def _rounds(
    cluster: Cluster,
    folder: Path,
    num_kills: int,
    seed: int,
    *,
    stages: tuple[Stage, ...],
    bucket: str | None,
) -> Iterator[Tally]:
    rng = random.Random(seed)
    trajectories = {(t.prompt_id, t.trajectory_index): t for t in undisturbed(seed)}
    trains = Stage.TRAIN in stages
    model = None
    num_missed = 0
    for number in itertools.count():
        tally = Tally()
        now = min(num_kills, KILLS_A_ROUND) if number or not trains else 0
        training_kills = round(now * TRAINING_SHARE) if trains else 0
        played = Round(cluster, folder / f"run-{number}", seed, rng, stages=stages, bucket=bucket)
        played.play(tally, sampling_kills=now - training_kills, training_kills=training_kills)
        tally.compare_trajectories(played.store, trajectories)
        if trains:
            found = read_model(played.store)
            model = model or found
            tally.compare_model(found, model)
        yield tally
        num_kills -= tally.kills.total()
        # A short round may end before anything could be killed, but not one after the other.
        num_missed = num_missed + 1 if now and not tally.kills else 0
        if not num_kills or num_missed == MOST_MISSED:
            return


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/drill.json"))
    parser.add_argument("--s3", action="store_true", help="on an S3 server that often fails")
    parser.add_argument("--rollouts-only", action="store_true", help="neither weigh nor train")
    args = parser.parse_args()
    stages = (Stage.ROLLOUT,) if args.rollouts_only else ALL_STAGES
    with unreliable_s3(args.seed) if args.s3 else nullcontext() as bucket:
        rounds = drill(args.kills, args.seed, stages=stages, bucket=bucket)
    total = Tally()
    for each in rounds:
        total.add(each)
    Console(width=None if sys.stdout.isatty() else 120).print(table(rounds, total))
    print(total)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        json.dumps(
            {
                "seed": args.seed,
                "s3": args.s3,
                **total.as_json(),
                "rounds": [each.as_json() for each in rounds],
            },
            indent=2,
        )
    )
    return 0 if total.clean and total.kills.total() == args.kills else 1


if __name__ == "__main__":
    sys.exit(main())
