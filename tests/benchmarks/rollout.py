"""Multi-turn sampling: a barrier at every turn, our player, and the engine alone.

One engine, one process, the same prompts, seeds and answer lengths in every row. Lengths are
log-normal, 4 to 256 tokens, a function of (prompt, trajectory, turn); every answer is wrong, so all
trajectories play five turns.

- ``barrier``: the schedule of the paper's scripts. Batches of 256 trajectories; each turn is one
  ``generate`` over the batch, then all environments react at once, then the next turn.
- ``player``: ours. Every trajectory goes on as soon as its own turn is sampled and judged.
- ``engine alone``: all turns as independent requests in one ``generate``: what is left to gain.

Run as ``python tests/benchmarks/rollout.py [--trajectories N] [--out FILE]``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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

from drift_ray.config import EnvironmentConfig, SamplingConfig
from drift_ray.nano import model_dir
from drift_ray.rollout.chat import ChatFormat
from drift_ray.rollout.engine import VllmEngine, completion_of, sampling_params
from drift_ray.rollout.episode import Episode, Request
from drift_ray.rollout.player import play
from drift_ray.rollout.referee import Referee
from drift_ray.tasks import addition
from drift_ray.tasks.environment import StepResult, UnaryFeedbackEnvironment
from drift_ray.types import Verdict

MAX_TURNS = 5
BATCH = 256
LENGTHS = {"median": 16.0, "sigma": 1.0, "min": 4, "max": 256}
ENGINE = {
    "max_model_len": 2048,
    "max_num_seqs": BATCH,
    "hf_overrides": {"max_position_embeddings": 2048},
    "kv_cache_memory_bytes": 1 << 31,
}


def always_wrong(answer: str, gold: str) -> Verdict:
    return Verdict(correct=False, valid=True, normalized=answer)


class SlowEnvironment(UnaryFeedbackEnvironment):
    """Takes its time to react, as one that calls a service would."""

    latency_s = 0.0

    def step(self, text: str) -> StepResult:
        time.sleep(self.latency_s)
        return super().step(text)


class SkewedEngine(VllmEngine):
    """Ends a turn at a length drawn for it, not at the model's will."""

    def submit(self, request: Request) -> None:
        self._engine.add_request(
            request.request_id, {"prompt_token_ids": request.token_ids}, skewed(request)
        )

    def generate(self, requests: Sequence[Request]) -> list[Any]:
        return self._llm.generate(
            [{"prompt_token_ids": request.token_ids} for request in requests],
            [skewed(request) for request in requests],
            use_tqdm=False,
        )

    def forget(self) -> None:
        self._llm.reset_prefix_cache()


def skewed(request: Request) -> Any:
    drawn = random.Random(request.seed).lognormvariate(0.0, LENGTHS["sigma"])
    length = int(min(max(drawn * LENGTHS["median"], LENGTHS["min"]), LENGTHS["max"]))
    return sampling_params(request, max_tokens=length, ignore_eos=True)


def make_episodes(engine: SkewedEngine, count: int) -> list[Episode]:
    config = EnvironmentConfig(think=False, system_prompt=None, max_turns=MAX_TURNS)
    chat = ChatFormat(engine.tokenizer, "<answer>")

    def environment(prompt: Any) -> Callable[[], SlowEnvironment]:
        return lambda: SlowEnvironment(prompt, config=config, grade=always_wrong)

    return [
        Episode(
            prompt,
            trajectory_index=index,
            make_environment=environment(prompt),
            chat=chat,
            sampling=SamplingConfig(max_tokens=int(LENGTHS["max"])),
            max_model_len=engine.max_model_len,
            seed=0,
        )
        for prompt in addition.prompts("train", count // 8, 0)
        for index in range(8)
    ]


def with_barrier(engine: SkewedEngine, episodes: list[Episode]) -> None:
    with ThreadPoolExecutor(BATCH) as threads:
        for start in range(0, len(episodes), BATCH):
            batch = episodes[start : start + BATCH]
            while batch:
                reactions = threads.map(lambda call: call(), [e.pending_call() for e in batch])
                for episode, reaction in zip(batch, list(reactions), strict=True):
                    episode.react(reaction)
                batch = [episode for episode in batch if not episode.done]
                outputs = engine.generate([episode.request() for episode in batch])
                for episode, output in zip(batch, outputs, strict=True):
                    episode.complete(completion_of(output))


def with_player(engine: SkewedEngine, episodes: list[Episode]) -> None:
    for _, failure in play(engine, episodes, Referee(num_threads=BATCH, deadline_s=60.0)):
        assert failure is None


def alone(requests: list[Request]) -> Callable[[SkewedEngine, list[Episode]], None]:
    return lambda engine, _: (engine.generate(requests), None)[1]


def recorded(engine: SkewedEngine, count: int) -> list[Request]:
    """All requests of a run, as the engine gets them."""
    requests: list[Request] = []
    submit = engine.submit

    def record(request: Request) -> None:
        requests.append(request)
        submit(request)

    engine.submit = record  # type: ignore[method-assign]
    with_player(engine, make_episodes(engine, count))
    del engine.submit  # type: ignore[method-assign]
    return requests


def measure(
    engine: SkewedEngine,
    count: int,
    schedule: Callable[[SkewedEngine, list[Episode]], None],
    latency_s: float,
) -> float:
    SlowEnvironment.latency_s = latency_s
    episodes = make_episodes(engine, count)
    engine.forget()
    started = time.perf_counter()
    schedule(engine, episodes)
    return time.perf_counter() - started


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trajectories", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/rollout.json"))
    args = parser.parse_args(argv)
    engine = SkewedEngine(model_dir(), on_gpu=False, arguments=ENGINE)
    requests = recorded(engine, args.trajectories)  # warms up, too
    num_tokens = sum(skewed(request).max_tokens for request in requests)
    rows = [
        ("barrier", with_barrier, 0.0),
        ("player", with_player, 0.0),
        ("engine alone", alone(requests), 0.0),
        ("barrier", with_barrier, 0.3),
        ("player", with_player, 0.3),
    ]
    # Rounds of all schedules, so that a busy minute does not fall on one of them alone.
    rounds = [
        [measure(engine, args.trajectories, schedule, latency) for _, schedule, latency in rows]
        for _ in range(args.repeats)
    ]
    best = [min(times) for times in zip(*rounds, strict=True)]
    table = Table(title=f"{args.trajectories} trajectories, {num_tokens:,} sampled tokens")
    for column in ("schedule", "environment", "seconds", "tokens/s", "barrier / this"):
        table.add_column(column, justify="left" if column == "schedule" else "right")
    results = []
    for (name, _, latency), seconds in zip(rows, best, strict=True):
        barrier = best[0] if latency == 0 else best[3]
        table.add_row(
            name,
            f"{latency:g} s",
            f"{seconds:.1f}",
            f"{num_tokens / seconds:,.0f}",
            f"{barrier / seconds:.2f}",
        )
        results.append({"schedule": name, "environment_s": latency, "seconds": seconds})
    Console().print(table)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        json.dumps({"num_tokens": num_tokens, "best": results, "rounds_s": rounds}, indent=2)
    )
    print(f"results in {args.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
