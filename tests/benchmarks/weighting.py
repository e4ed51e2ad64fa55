"""The weighting stage on many trajectories: time, memory, and what the same costs otherwise.

    python tests/benchmarks/weighting.py --rows 1000000

writes that many made-up trajectories (16 a prompt; messages, tokens and log-probabilities as large
as real ones, about 2.5 kB each), and measures on them

- the whole stage, from parts on disk to committed weights and summary, and its memory beyond Ray's;
- a sweep over eight values of β;
- the core, returns in memory to weights, beside the same with Polars (if installed);
- the returns and weights of a slice, row by row in Python as the reference does it at load time,
  on the same machine in the same minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from drift_ray.cluster import prepare_ray
from drift_ray.config import RunConfig, WeightingConfig
from drift_ray.lineage import Lineage
from drift_ray.schema import CONTENT_KEY, TRAJECTORY_SCHEMA
from drift_ray.store import ROLLOUTS, RunStore
from drift_ray.weighting import stage
from drift_ray.weighting.groups import Groups
from drift_ray.weighting.importance import importance_weights
from drift_ray.weighting.part import read_columns, return_table
from drift_ray.weighting.passes import rollout_parts
from drift_ray.weighting.sweep import sweep, sweep_configs

GROUP_SIZE = 16
MAX_TURNS = 5
SLICE_PARTS = 4
BETAS = [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]


def make_part(
    rng: np.random.Generator, words: np.ndarray, first_prompt: int, rows: int
) -> pa.Table:
    """Trajectories of whole groups; the texts and tokens of a real run in size, not in sense."""
    solved_at = np.minimum(
        rng.geometric(
            rng.beta(0.8, 1.2, rows // GROUP_SIZE).clip(1e-3)[
                np.repeat(np.arange(rows // GROUP_SIZE), GROUP_SIZE)
            ]
        ),
        MAX_TURNS + 1,
    )
    num_turns = np.minimum(solved_at, MAX_TURNS)
    offsets = np.concatenate([[0], np.cumsum(num_turns)])
    total = offsets[-1]
    turn_index = np.arange(total) - np.repeat(offsets[:-1], num_turns)
    is_last = turn_index == np.repeat(num_turns - 1, num_turns)
    reward = (is_last & np.repeat(solved_at <= MAX_TURNS, num_turns)).astype(np.float64)
    format_ok = (rng.random(total) < 0.97) | (reward > 0)

    def strings(length: int, count: int) -> pa.Array:
        picks = rng.integers(0, len(words), (count, length))
        return pa.array([" ".join(row) for row in words[picks].tolist()])

    texts = strings(24, 512).take(pa.array(rng.integers(0, 512, total)))
    norms = pa.array(rng.integers(0, 40, total).astype(str)).filter(pa.array(format_ok))
    answers = pa.ListArray.from_arrays(
        np.concatenate([[0], np.cumsum(format_ok)]).astype(np.int32), norms
    )
    sampled = rng.integers(40, 200, total)
    context = np.where(turn_index == 0, 90, 20)
    ends = np.cumsum(sampled + context)
    base = np.repeat(np.concatenate([[0], ends])[offsets[:-1]], num_turns)
    turn_type = TRAJECTORY_SCHEMA.field("turns").type.value_type
    turns = pa.StructArray.from_arrays(
        [
            pa.array(turn_index, pa.int32()), texts, texts, answers, answers,
            pa.array(reward), pa.array(format_ok),
            pa.array(np.where(rng.random(total) < 0.02, "length", "stop")),
            pa.array(ends - sampled - base, pa.int32()), pa.array(ends - base, pa.int32()),
        ],
        fields=list(turn_type),
    )  # fmt: skip
    num_tokens = ends[-1]
    is_context = np.repeat(np.tile([True, False], total), np.stack([context, sampled], 1).ravel())
    token_offsets = np.concatenate([[0], ends])[offsets].astype(np.int32)
    tokens = np.minimum(rng.zipf(1.25, num_tokens), 150_000).astype(np.int32)
    logprobs = -rng.exponential(0.4, num_tokens).astype(np.float32)
    message_type = TRAJECTORY_SCHEMA.field("messages").type.value_type
    num_messages = 2 * total
    messages = pa.StructArray.from_arrays(
        [
            pa.array(np.tile(["user", "assistant"], total)),
            strings(24, 512).take(pa.array(rng.integers(0, 512, num_messages))),
        ],
        fields=list(message_type),
    )
    prompt = np.repeat(np.arange(first_prompt, first_prompt + rows // GROUP_SIZE), GROUP_SIZE)
    ids = pa.array([f"math-{number:012x}" for number in prompt])
    successful = solved_at <= MAX_TURNS
    columns = {
        "prompt_id": ids,
        "trajectory_index": pa.array(
            np.tile(np.arange(GROUP_SIZE), rows // GROUP_SIZE), pa.int32()
        ),
        "task": pa.array(["math"] * rows),
        "question": strings(30, rows // GROUP_SIZE).take(pa.array(prompt - first_prompt)),
        "gold": pa.array(["7"] * rows),
        "messages": pa.ListArray.from_arrays((2 * offsets).astype(np.int32), messages),
        "turns": pa.ListArray.from_arrays(offsets.astype(np.int32), turns),
        "token_ids": pa.ListArray.from_arrays(token_offsets, pa.array(tokens)),
        "logprobs": pa.ListArray.from_arrays(token_offsets, pa.array(logprobs, mask=is_context)),
        "first_success_turn": pa.array(solved_at, pa.int32(), mask=~successful),
        "format_penalty": pa.array(
            -0.1 * np.bincount(np.repeat(np.arange(rows), num_turns), weights=~format_ok)
        ),
        "num_turns": pa.array(num_turns, pa.int32()),
        "end_reason": pa.array(np.where(successful, "success", "max_turns")),
        "seed": pa.array(np.zeros(rows, np.int64)),
    }
    metadata = {**TRAJECTORY_SCHEMA.metadata, CONTENT_KEY: f"{first_prompt:032x}".encode()}
    return pa.table(
        [columns[name] for name in TRAJECTORY_SCHEMA.names],
        schema=TRAJECTORY_SCHEMA.with_metadata(metadata),
    )


def write_run(folder: Path, rows: int, prompts_per_part: int) -> int:
    """Fill ``rollouts/``; returns its bytes on disk."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(4096)])
    (folder / ROLLOUTS).mkdir(parents=True)
    size = 0
    for number, first in enumerate(range(0, rows // GROUP_SIZE, prompts_per_part)):
        prompts = min(prompts_per_part, rows // GROUP_SIZE - first)
        path = folder / ROLLOUTS / f"part-{number:06d}.parquet"
        table = make_part(rng, words, first, prompts * GROUP_SIZE)
        pq.write_table(table, path, compression="zstd")
        size += path.stat().st_size
    return size


class PeakMemory:
    """Greatest memory of this process and its Ray, shared pages counted once; a context manager."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.before_gib = self.peak_gib = 0.0

    def __enter__(self) -> PeakMemory:
        self.before_gib = self.peak_gib = memory_gib()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.peak_gib = max(self.peak_gib, memory_gib())


def memory_gib() -> float:
    """Proportional set size of this process and all its descendants."""
    me = psutil.Process()
    total = 0
    for process in [me, *me.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 2**30


def timed(function: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Best wall time of several calls, and the last result."""
    best, result = math.inf, None
    for _ in range(repeats):
        started = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - started)
    return best, result


def loop_weights(rows: Iterable[dict[str, Any]], config: WeightingConfig) -> list[float]:
    """Returns and weights, one trajectory at a time."""
    groups: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for number, row in enumerate(rows):
        total = 0.0
        norms = []
        for k, turn in enumerate(row["turns"]):
            total += config.gamma**k * turn["reward"]
            norms.extend(turn["answer_norms"])
        repetition = 0.5 * (1 - len({n for n in norms if n}) / len(norms)) if norms else 0.0
        groups[row["prompt_id"]].append((number, total + row["format_penalty"] - repetition))
    weights = [0.0] * sum(map(len, groups.values()))
    for members in groups.values():
        greatest = max(value for _, value in members)
        likelihoods = [math.exp((value - greatest) / config.beta) for _, value in members]
        mean = sum(likelihoods) / len(likelihoods)
        for (number, _), likelihood in zip(members, likelihoods, strict=True):
            weights[number] = likelihood / mean
    return weights


def each_row(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows as iterating over a ``datasets.Dataset`` gives them: one at a time, all its columns."""
    try:
        from datasets import Dataset
    except ImportError:
        for batch in table.to_batches():
            for row in range(batch.num_rows):
                yield batch.slice(row, 1).to_pylist()[0]
    else:
        yield from Dataset(table)


def polars_weights(ids: pa.Array, returns: np.ndarray, beta: float) -> Callable[[], Any] | None:
    """The core's work as a Polars group_by and join-free window, on the same columns."""
    try:
        import polars as pl
    except ImportError:
        return None
    frame = pl.DataFrame({"id": pl.from_arrow(ids), "r": returns})

    def work() -> Any:
        stats = frame.group_by("id").agg(
            m=pl.col("r").max(), z=((pl.col("r") - pl.col("r").max()) / beta).exp().mean()
        )
        joined = frame.join(stats, on="id", how="left", maintain_order="left")
        return joined.select(((pl.col("r") - pl.col("m")) / beta).exp() / pl.col("z"))

    return work


def bench_core(store: RunStore, parts: Sequence[str]) -> dict[str, float]:
    """The core and Polars on all rows in memory; core and loop on a slice."""
    config = WeightingConfig()
    tables = [return_table(read_columns(store, part), config) for part in parts]
    ids = pa.chunked_array(
        [t["prompt_id"].combine_chunks().cast(pa.string()) for t in tables]
    ).combine_chunks()
    returns = np.concatenate([t["shaped_return"].to_numpy() for t in tables])
    core_s, ours = timed(
        lambda: importance_weights(returns, Groups.of(ids), beta=config.beta), repeats=5
    )
    found = {"core_s": core_s}
    theirs = polars_weights(ids, returns, config.beta)
    if theirs is not None:
        found["polars_s"], frame = timed(theirs, repeats=5)
        np.testing.assert_allclose(frame.to_series().to_numpy(), ours, rtol=1e-9)
        found["core / polars speed"] = found["polars_s"] / core_s
    return found | bench_loop(store, parts, config)


def bench_loop(store: RunStore, parts: Sequence[str], config: WeightingConfig) -> dict[str, float]:
    """The same trajectories in memory, to weights: row by row, and in columns; one process."""
    parts = parts[:SLICE_PARTS]

    def vectorised() -> np.ndarray:
        returns = return_table(columns, config)
        groups = Groups.of(returns["prompt_id"].combine_chunks())
        return importance_weights(returns["shaped_return"].to_numpy(), groups, beta=config.beta)

    columns = pa.concat_tables([read_columns(store, part) for part in parts]).combine_chunks()
    fast_s, fast = timed(vectorised, repeats=9)
    found = {"in columns, us/row": 1e6 * fast_s / len(fast)}
    whole = pa.concat_tables([store.read_table(part, TRAJECTORY_SCHEMA) for part in parts])
    for name, table in (
        ("all columns", whole),
        ("without tokens", whole.drop_columns(["token_ids", "logprobs"])),
        ("only what is needed", columns),
    ):
        table = table.combine_chunks()
        loop_s, slow = timed(lambda table=table: loop_weights(each_row(table), config), repeats=2)
        np.testing.assert_allclose(fast, slow, rtol=1e-9)
        found[f"row by row, {name}, us/row"] = 1e6 * loop_s / len(slow)
        found[f"speed-up over it ({name})"] = loop_s / fast_s
    return found


def bench_stage(store: RunStore, config: RunConfig) -> dict[str, float]:
    """The whole stage, the stage again (all parts there), and a sweep."""
    import ray

    lineage = Lineage(
        fingerprint={},
        reference="",
        rollouts="r",
        weights="w",
        model="",
        benchmark_bases={},
        evaluation_base="",
    )
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
        object_store_memory=2**30,
    )  # fmt: skip
    try:
        with PeakMemory() as memory:
            stage_s, summary = timed(lambda: stage.run(store, config, lineage))
        assert stage.is_done(store, config, lineage)
        again_s, _ = timed(lambda: stage.run(store, config, lineage))
        parts = rollout_parts(store)
        one = sweep_configs(config.weighting, betas=[0.1], gammas=[])
        many = sweep_configs(config.weighting, betas=BETAS, gammas=[])
        one_s, _ = timed(lambda: sweep(store, parts, one))
        many_s, _ = timed(lambda: sweep(store, parts, many))
    finally:
        ray.shutdown()
    return {
        "num_trajectories": summary["num_trajectories"],
        "num_parts": summary["num_parts"],
        "stage_s": stage_s,
        "stage_again_s": again_s,
        "memory_before_gib": memory.before_gib,
        "memory_above_gib": memory.peak_gib - memory.before_gib,
        "sweep_of_1_s": one_s,
        f"sweep_of_{len(BETAS)}_s": many_s,
        "sweep ratio": many_s / one_s,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Make the data, measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--prompts-per-part", type=int, default=128)
    parser.add_argument("--folder", type=Path, help="keep the data here, and use it if it is there")
    parser.add_argument("--out", type=Path, default=Path("build/weighting-benchmark.json"))
    args = parser.parse_args(argv)
    prepare_ray()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="drift_ray-weighting-"))
    try:
        if not (folder / ROLLOUTS).exists():
            size = write_run(folder, args.rows, args.prompts_per_part)
            print(f"{args.rows:,} trajectories, {size / 2**30:.2f} GiB on disk")
        store = RunStore(str(folder))
        config = RunConfig.model_validate(
            {
                "run": store.url,
                "model": {"path": "m"},
                "task": {
                    "name": "t", "train": {"source": "addition"}, "test": {"source": "addition"},
                },
            }
        )  # fmt: skip
        results = bench_stage(store, config) | bench_core(store, rollout_parts(store))
    finally:
        if args.folder is None:
            shutil.rmtree(folder)
    for name, value in results.items():
        print(f"{name:>50}  {value:,.4g}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"cpus": os.cpu_count(), **results}, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
