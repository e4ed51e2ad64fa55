"""Multi-turn sampling with vLLM: a barrier at every turn, ours, the engine alone, two replicas.

All schedules of ``_schedules`` run on one engine in one process. The demo's sums run through the
whole stage, Ray and all, with one replica and with two.

Run as ``python tests/benchmarks/rollout.py [--trajectories N] [--repeats N] [--out FILE]``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_LOGGING_LEVEL="ERROR",
    OMP_NUM_THREADS="1",
)

from _schedules import (
    BATCH,
    SlowEnvironment,
    length,
    make_groups,
    recorded,
    with_barrier,
    with_loop,
)

from drift_ray.cluster import prepare_ray, ray_cluster
from drift_ray.config_file import load_config
from drift_ray.nano import model_dir
from drift_ray.pipeline import Pipeline
from drift_ray.rollout.episode import Episode
from drift_ray.rollout.protocol import Completion, Request
from drift_ray.rollout.vllm_engine import VllmEngine, completion_of, sampling_params

DEMO = Path(__file__).resolve().parents[2] / "jobs/configs/demo.yaml"
ENGINE = {
    "max_model_len": 2048,
    "max_num_seqs": BATCH,
    "hf_overrides": {"max_position_embeddings": 2048},
    "kv_cache_memory_bytes": 1 << 31,
}
Groups = list[list[Episode]]


class SkewedEngine(VllmEngine):
    """Ends a turn at a length drawn for it, not at the model's will; counts prefix-cache hits."""

    num_prompt_tokens = num_cached_tokens = 0

    def step(self) -> list[Completion]:
        done = [output for output in self._engine.step() if output.finished]
        self.num_prompt_tokens += sum(len(output.prompt_token_ids) for output in done)
        self.num_cached_tokens += sum(output.num_cached_tokens or 0 for output in done)
        return [completion_of(output) for output in done]

    def submit(self, request: Request) -> None:
        self._engine.add_request(
            request.request_id, {"prompt_token_ids": request.token_ids}, skewed(request)
        )

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        outputs = self._llm.generate(
            [{"prompt_token_ids": request.token_ids} for request in requests],
            [skewed(request) for request in requests],
            use_tqdm=False,
        )
        return [completion_of(output) for output in outputs]

    def forget(self) -> None:
        self._llm.reset_prefix_cache()


def skewed(request: Request) -> Any:
    return sampling_params(request, max_tokens=length(request), ignore_eos=True)


def measure(
    engine: SkewedEngine, num: int, schedule: Callable[[Groups], object], latency_s: float
) -> float:
    SlowEnvironment.latency_s = latency_s
    groups = make_groups(engine, num)
    engine.forget()
    started = time.perf_counter()
    schedule(groups)
    return time.perf_counter() - started


def compare_schedules(num: int, repeats: int) -> dict[str, Any]:
    engine = SkewedEngine(model_dir(), on_gpu=False, arguments=ENGINE)
    requests = recorded(engine, num)  # warms up, too
    cached_frac = engine.num_cached_tokens / engine.num_prompt_tokens
    num_tokens = sum(map(length, requests))
    barrier, ours = partial(with_barrier, engine.generate), partial(with_loop, engine)
    rows: list[tuple[str, Callable[[Groups], object], float]] = [
        ("barrier", barrier, 0.0),
        ("ours", ours, 0.0),
        ("engine alone", lambda _: engine.generate(requests), 0.0),
        ("barrier", barrier, 0.3),
        ("ours", ours, 0.3),
    ]
    # Rounds of all schedules, so that a busy minute does not fall on one of them alone.
    rounds = [
        [measure(engine, num, schedule, latency) for _, schedule, latency in rows]
        for _ in range(repeats)
    ]
    best = [min(times) for times in zip(*rounds, strict=True)]
    table = Table(title=f"{num} trajectories, {num_tokens:,} sampled tokens, best of {repeats}")
    for column in ("schedule", "environment", "seconds", "tokens/s", "barrier / this"):
        table.add_column(column, justify="left" if column == "schedule" else "right")
    results = []
    for (name, _, latency), seconds in zip(rows, best, strict=True):
        against = best[0] if latency == 0 else best[3]
        cells = f"{seconds:.1f}", f"{num_tokens / seconds:,.0f}", f"{against / seconds:.2f}"
        table.add_row(name, f"{latency:g} s", *cells)
        results.append({"schedule": name, "environment_s": latency, "seconds": seconds})
    Console().print(table)
    print(f"prompt tokens found in the prefix cache by ours: {cached_frac:.0%}")
    return {
        "num_tokens": num_tokens,
        "cached_frac": cached_frac,
        "best": results,
        "rounds_s": rounds,
    }


def tokens_per_s(num_replicas: int) -> float:
    """Of the demo's rollout stage, once the replicas are up."""
    # Imported when what Ray reads from the environment is settled.
    from drift_ray.rollout import stage
    from drift_ray.rollout.pool import ReplicaPool

    with tempfile.TemporaryDirectory() as folder:
        config = load_config(DEMO, [f"run={folder}", f"replicas.num_replicas={num_replicas}"])
        pipeline = Pipeline(config)
        plan = stage.plan(config, pipeline.lineage, pipeline.inputs.prompts)
        with ReplicaPool(pipeline.store.url, config.model, config.replicas) as pool:
            return stage.run(pipeline.store, pool, config, plan).tokens_per_s


def compare_replicas(repeats: int) -> dict[str, Any]:
    with ray_cluster(load_config(DEMO)):
        rounds = [[tokens_per_s(num) for num in (1, 2)] for _ in range(repeats)]
    one, two = (max(rates) for rates in zip(*rounds, strict=True))
    table = Table(title=f"4,800 trajectories of the demo, best of {repeats}")
    for column in ("replicas", "tokens/s", "this / one"):
        table.add_column(column, justify="right")
    table.add_row("1", f"{one:,.0f}", "1.00")
    table.add_row("2", f"{two:,.0f}", f"{two / one:.2f}")
    Console().print(table)
    return {"one_tokens_per_s": one, "two_tokens_per_s": two, "rounds": rounds}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trajectories", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/rollout.json"))
    args = parser.parse_args(argv)
    prepare_ray()
    results = {
        "replicas": compare_replicas(args.repeats),
        "schedules": compare_schedules(args.trajectories, args.repeats),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=2))
    print(f"results in {args.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
