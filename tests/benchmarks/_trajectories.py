"""Trajectories with multi-turn lengths of real rollouts, in the vocabulary of any model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from drift_ray.schema import TRAJECTORY_SCHEMA, WEIGHT_SCHEMA
from drift_ray.store import ROLLOUTS, WEIGHTS, RunStore

DEMO = Path(__file__).resolve().parents[2] / "jobs/configs/demo.yaml"
WEIGHTING = "drift"
_SPAN = ("prompt_start", "token_start", "token_end")


def sample_nano(folder: Path, num_prompts: int) -> RunStore:
    """Let the nano model play the demo's sums, eight trajectories a prompt, and weigh them."""
    settings = [
        f"run={folder}",
        f"task.train.num_prompts={num_prompts}",
        f"rollout.prompts_per_part={num_prompts}",
        "replicas.num_replicas=1",
    ]
    for stage in ("rollout", "weigh"):
        command = [sys.executable, "-m", "drift_ray.cli", stage, str(DEMO), *settings]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return RunStore(str(folder))


def stretch(
    run: RunStore, folder: Path, *, num_rows: int, factor: int, vocab_size: int
) -> RunStore:
    """Some of the trajectories, every message ``factor`` times as long, of random tokens.

    Args:
        run: One part.
        folder: Where to write the longer ones.
        num_rows: How many to take, at random.
        factor: At 1 they keep their tokens.
        vocab_size: Of the random tokens.
    """
    rng = np.random.default_rng(0)
    [part] = run.parts(ROLLOUTS)
    weights = f"{WEIGHTS}/{WEIGHTING}/{part.rsplit('/', 1)[1]}"
    table = run.read_table(part, TRAJECTORY_SCHEMA)
    rows = rng.permutation(table.num_rows)[:num_rows]
    stretched = RunStore(str(folder))
    stretched.write_table(weights, run.read_table(weights, WEIGHT_SCHEMA).take(rows))
    table = table.take(rows)
    if factor > 1:
        table = _stretch(table, factor, vocab_size, rng)
    stretched.write_table(part, table)
    return stretched


def _stretch(table: pa.Table, factor: int, vocab_size: int, rng: np.random.Generator) -> pa.Table:
    lengths = table["token_ids"].combine_chunks().value_lengths().to_numpy() * factor
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    token_ids = rng.integers(0, vocab_size, lengths.sum(), dtype=np.int32)
    logprobs = table["logprobs"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    logprobs = pa.array(np.repeat(logprobs, factor), from_pandas=True)  # NaN: not sampled
    turns = [
        [turn | {name: turn[name] * factor for name in _SPAN} for turn in turns]
        for turns in table["turns"].to_pylist()
    ]
    for name, column in {
        "token_ids": pa.ListArray.from_arrays(offsets, pa.array(token_ids)),
        "logprobs": pa.ListArray.from_arrays(offsets, logprobs),
        "turns": pa.array(turns, TRAJECTORY_SCHEMA.field("turns").type),
    }.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(index), column)
    return table
