"""Multi-turn sampling where time is modelled: a GPU's engine, and a fleet of 256 replicas.

- *GPU engine*: a step takes 8 ms, and 20 µs more for each running request, as a 3B model's decoding
  on one large GPU roughly does. Schedules of ``_schedules``, in real time.
- *Fleet*: the dispatcher alone, in virtual time: 256 replicas of unequal speed and skewed groups,
  1,000,000 groups. What matters is how long its decisions take, how much memory it needs, and how
  evenly the fleet ends.

Run as ``python tests/benchmarks/rollout_modelled.py [--groups N] [--replicas N] [--out FILE]``.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from _schedules import (
    BATCH,
    SlowEnvironment,
    length,
    make_groups,
    recorded,
    with_barrier,
    with_loop,
)
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from drift_ray.nano.tokenizer import build_tokenizer
from drift_ray.rollout.dispatch import Dispatcher
from drift_ray.rollout.episode import Episode
from drift_ray.rollout.protocol import Completion, Request
from drift_ray.rollout.work import Part
from drift_ray.types import Prompt
from tests.modelled import ModelledEngine

STEP_S, SEQ_S = 0.008, 0.00002
PROMPTS_PER_PART, ROOM = 32, 40
GROUP_S, GROUP_SIGMA = 30.0, 0.5
"""Seconds from a group's first request to its last answer: median, and how skewed."""


def gpu_engine() -> ModelledEngine:
    tokenizer = build_tokenizer()
    digit = tokenizer.encode("7", add_special_tokens=False)
    return ModelledEngine(
        lambda request: digit * length(request),
        tokenizer,
        step_s=STEP_S,
        seq_s=SEQ_S,
        max_num_seqs=BATCH,
    )


def generate(requests: Sequence[Request]) -> list[Completion]:
    engine = gpu_engine()
    for request in requests:
        engine.submit(request)
    done: dict[str, Completion] = {}
    while len(done) < len(requests):
        done |= {completion.request_id: completion for completion in engine.step()}
    return [done[request.request_id] for request in requests]


def compare_schedules(num: int) -> dict[str, Any]:
    requests = recorded(gpu_engine(), num)
    num_tokens = sum(map(length, requests))
    schedules: list[tuple[str, Callable[[list[list[Episode]]], object], float]] = [
        ("barrier", lambda groups: with_barrier(generate, groups), 0.0),
        ("ours", lambda groups: with_loop(gpu_engine(), groups), 0.0),
        ("engine alone", lambda _: generate(requests), 0.0),
        ("barrier", lambda groups: with_barrier(generate, groups), 0.3),
        ("ours", lambda groups: with_loop(gpu_engine(), groups), 0.3),
    ]
    seconds = []
    for _, schedule, latency_s in schedules:
        SlowEnvironment.latency_s = latency_s
        groups = make_groups(gpu_engine(), num)
        started = time.perf_counter()
        schedule(groups)
        seconds.append(time.perf_counter() - started)
    table = Table(title=f"modelled GPU engine: {num} trajectories, {num_tokens:,} sampled tokens")
    for column in ("schedule", "environment", "seconds", "barrier / this"):
        table.add_column(column, justify="left" if column == "schedule" else "right")
    results = []
    for (name, _, latency_s), spent in zip(schedules, seconds, strict=True):
        against = seconds[0] if latency_s == 0 else seconds[3]
        table.add_row(name, f"{latency_s:g} s", f"{spent:.1f}", f"{against / spent:.2f}")
        results.append({"schedule": name, "environment_s": latency_s, "seconds": spent})
    Console().print(table)
    return {"num_tokens": num_tokens, "schedules": results}


def parts(num_groups: int) -> Iterator[Part]:
    for start in range(0, num_groups, PROMPTS_PER_PART):
        prompts = tuple(
            Prompt(prompt_id=str(index), task="t", question="q" * 200, gold="1")
            for index in range(start, min(start + PROMPTS_PER_PART, num_groups))
        )
        yield Part(name=f"rollouts/part-{start // PROMPTS_PER_PART:06d}", prompts=prompts)


def fleet(num_groups: int, num_replicas: int) -> dict[str, float]:
    """Play all groups in virtual time; returns what it cost the dispatcher."""
    rng = random.Random(0)
    work = Dispatcher(parts(num_groups), num_groups=num_groups, max_group_deaths=3)
    speed = {replica: rng.uniform(0.7, 1.3) for replica in range(1, num_replicas + 1)}
    events = [(0.0, replica, "") for replica in speed]
    room = dict.fromkeys(speed, ROOM)
    now_s = deciding_s = 0.0
    last_s = dict.fromkeys(speed, 0.0)
    num_parts = 0
    while events:
        now_s, replica, key = heapq.heappop(events)
        started = time.perf_counter()
        whole = []
        if key:
            name, _, index = key.rpartition("#")
            whole = work.finish(replica, [(name, int(index))])
            room[replica] += 1
            last_s[replica] = now_s
        for name in whole:
            work.close(name)
        groups = work.take(replica, room[replica], num_replicas=num_replicas)
        deciding_s += time.perf_counter() - started
        num_parts += len(whole)
        room[replica] -= len(groups)
        for group in groups:
            took_s = GROUP_S * rng.lognormvariate(0.0, GROUP_SIGMA) / speed[replica]
            event = (now_s + took_s, replica, f"{group.key[0]}#{group.key[1]}")
            heapq.heappush(events, event)
    assert work.done
    idle_s = sum(now_s - each for each in last_s.values())
    return {
        "num_parts": num_parts,
        "wall_s": now_s,
        "dispatcher_s": deciding_s,
        "dispatcher_frac": deciding_s / now_s,
        "idle_frac": idle_s / (now_s * num_replicas),
    }


def peak_mib(num_groups: int, num_replicas: int) -> float:
    tracemalloc.start()
    fleet(num_groups, num_replicas)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / 2**20


def measure_fleet(num_groups: int, num_replicas: int) -> dict[str, Any]:
    result: dict[str, Any] = fleet(num_groups, num_replicas)
    few, many = num_groups // 10, num_groups // 2
    result["peak_mib"] = {str(num): peak_mib(num, num_replicas) for num in (few, many)}
    table = Table(title=f"dispatcher: {num_groups:,} groups on {num_replicas} modelled replicas")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_row("wall time (modelled)", f"{result['wall_s']:,.0f} s")
    table.add_row("time in the dispatcher", f"{result['dispatcher_s']:.1f} s")
    table.add_row("share", f"{result['dispatcher_frac']:.2%}")
    table.add_row("replicas idle at the end", f"{result['idle_frac']:.2%} of their time")
    for num, peak in result["peak_mib"].items():
        table.add_row(f"peak memory, {int(num):,} groups", f"{peak:.1f} MiB")
    Console().print(table)
    return result


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trajectories", type=int, default=1024)
    parser.add_argument("--groups", type=int, default=1_000_000)
    parser.add_argument("--replicas", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/rollout_modelled.json"))
    args = parser.parse_args(argv)
    results = {
        "fleet": measure_fleet(args.groups, args.replicas),
        "gpu_engine": compare_schedules(args.trajectories),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=2))
    print(f"results in {args.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
