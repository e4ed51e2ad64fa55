"""Memory of loading training data: flat in the number of trajectories.

    python tests/benchmarks/loading.py [--rows 20000 200000]

Every number of trajectories (300 tokens each) is loaded by a process of its own, which then gathers
every sample once, as a training does. ``RssAnon`` is what the process has for itself; pages of the
mapped files, which the system takes back whenever it needs room, are not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROWS_PER_PART = 500
CONTEXT, TURN, NUM_TURNS = 40, 60, 3


def write_run(root: Path, num_rows: int) -> None:
    """A run directory of one part under many names."""
    from drift_ray.schema import trajectory_table
    from drift_ray.store import RunStore
    from drift_ray.types import EndReason, StopReason, Trajectory, Turn
    from tests.unit.training_cases import weight_table

    rng = np.random.default_rng(0)
    starts = [CONTEXT + (CONTEXT + TURN) * turn for turn in range(NUM_TURNS)]
    turns = tuple(
        Turn(
            turn_index=index,
            text="an answer " * 20,
            canonical_text="an answer " * 20,
            answers=("1",),
            answer_norms=("1",),
            reward=0.0,
            format_ok=True,
            stop_reason=StopReason.STOP,
            prompt_start=0,
            token_start=start,
            token_end=start + TURN,
        )
        for index, start in enumerate(starts)
    )
    logprobs = np.full((CONTEXT + TURN) * NUM_TURNS, np.nan, np.float32)
    for turn in turns:
        logprobs[turn.token_start : turn.token_end] = -1.0
    trajectories = [
        Trajectory(
            prompt_id=f"p{row // 8}",
            trajectory_index=row % 8,
            task="bench",
            question="?",
            gold="!",
            messages=(),
            turns=turns,
            token_ids=rng.integers(0, 50_000, len(logprobs)).astype(np.int32),
            logprobs=logprobs,
            first_success_turn=None,
            format_penalty=0.0,
            end_reason=EndReason.MAX_TURNS,
            seed=0,
        )
        for row in range(ROWS_PER_PART)
    ]
    store = RunStore(str(root))
    weights = weight_table(trajectories, rng.exponential(size=ROWS_PER_PART).tolist())
    for folder, table in (("rollouts", trajectory_table(trajectories)), ("weights/drift", weights)):
        first = f"{folder}/part-00000.parquet"
        store.write_table(first, table)
        for part in range(1, num_rows // ROWS_PER_PART):
            os.link(store.path(first), store.path(f"{folder}/part-{part:05d}.parquet"))


def measure(root: Path) -> dict[str, float]:
    """Load, then gather all samples in an order as good as random; in a process of its own."""
    from drift_ray.store import RunStore
    from drift_ray.training.data import load_training_data

    started = time.perf_counter()
    before = memory_mib("RssAnon")
    data = load_training_data(RunStore(str(root)), weighting="drift", loss_turns="last").train
    load_s, peak = time.perf_counter() - started, memory_mib("VmHWM")
    order = np.random.default_rng(0).permutation(len(data))
    num_loss = sum(int(data.loss_mask[data.offsets[i] : data.offsets[i + 1]].sum()) for i in order)
    assert num_loss == TURN * len(data)
    return {
        "num_trajectories": len(data),
        "num_tokens": len(data.token_ids),
        "load_s": round(load_s, 2),
        "rss_anon_before_mib": before,
        "peak_rss_of_load_mib": peak,
        "rss_anon_after_mib": memory_mib("RssAnon"),
        "on_disk_mib": round(9 * len(data.token_ids) / 2**20, 1),
    }


def memory_mib(name: str) -> float:
    """A figure of this process's memory, from the kernel."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise KeyError(name)


def main() -> None:
    """Print one JSON line a number of trajectories."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    for num_rows in arguments.rows:
        root = Path(tempfile.mkdtemp(prefix="drift_ray-bench-"))
        try:
            write_run(root, num_rows)
            command = [sys.executable, __file__, "--measure", str(root)]
            subprocess.run(command, check=True)
        finally:
            shutil.rmtree(root)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
