"""Schedules of multi-turn sampling, on the same engine, prompts, seeds and answer lengths.

Lengths are log-normal, 4 to 256 tokens, a function of (prompt, trajectory, turn); every answer is
wrong, so all trajectories play five turns.

- ``barrier``: the schedule of the paper's scripts. Batches of 256 trajectories; each turn is one
  ``generate`` over the batch, then all environments react at once, then the next turn.
- ``ours``: the loop of a replica. Every trajectory goes on as soon as its own turn is judged.
- ``engine alone``: all turns as independent requests in one ``generate``: what is left to gain.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from drift_ray.config import EnvironmentConfig, SamplingConfig
from drift_ray.rollout.chat import ChatFormat
from drift_ray.rollout.episode import Episode, Rules
from drift_ray.rollout.loop import EngineLoop
from drift_ray.rollout.protocol import Completion, Engine, Request
from drift_ray.rollout.referee import Referee
from drift_ray.tasks import addition
from drift_ray.tasks.environment import StepResult, UnaryFeedbackEnvironment
from drift_ray.types import Prompt, Verdict

MAX_TURNS = 5
BATCH = 256
GROUP_SIZE = 8
MEDIAN, SIGMA, SHORTEST, LONGEST = 16.0, 1.0, 4, 256

Generate = Callable[[Sequence[Request]], list[Completion]]


def length(request: Request) -> int:
    """Tokens that a turn gets, whatever the model would like."""
    drawn = random.Random(request.seed).lognormvariate(0.0, SIGMA)
    return int(min(max(drawn * MEDIAN, SHORTEST), LONGEST))


def always_wrong(answer: str, gold: str) -> Verdict:
    return Verdict(correct=False, valid=True, normalized=answer)


class SlowEnvironment(UnaryFeedbackEnvironment):
    """Takes its time to react, as one that calls a service would."""

    latency_s = 0.0

    def step(self, text: str) -> StepResult:
        time.sleep(self.latency_s)
        return super().step(text)


def make_groups(engine: Engine, num_trajectories: int) -> list[list[Episode]]:
    """Groups of episodes; the same ones at every call."""
    config = EnvironmentConfig(think=False, system_prompt=None, max_turns=MAX_TURNS)
    rules = Rules(
        chat=ChatFormat(engine.tokenizer, "<answer>"),
        sampling=SamplingConfig(max_tokens=LONGEST),
        max_model_len=engine.max_model_len,
        seed=0,
    )

    def group(prompt: Prompt) -> list[Episode]:
        make = partial(SlowEnvironment, prompt, config=config, grade=always_wrong)
        return [
            Episode(prompt, trajectory_index=index, make_environment=make, rules=rules)
            for index in range(GROUP_SIZE)
        ]

    return [group(prompt) for prompt in addition.prompts("train", num_trajectories // GROUP_SIZE)]


def with_barrier(generate: Generate, groups: list[list[Episode]]) -> None:
    """Turn by turn, batch by batch."""
    episodes = [episode for group in groups for episode in group]
    with ThreadPoolExecutor(BATCH) as threads:
        for start in range(0, len(episodes), BATCH):
            batch = episodes[start : start + BATCH]
            while batch:
                reactions = threads.map(lambda call: call(), [e.pending_call() for e in batch])
                for episode, reaction in zip(batch, list(reactions), strict=True):
                    episode.react(reaction)
                batch = [episode for episode in batch if not episode.done]
                completions = generate([episode.request() for episode in batch])
                for episode, completion in zip(batch, completions, strict=True):
                    episode.complete(completion)


def with_loop(engine: Engine, groups: list[list[Episode]]) -> None:
    """As a replica does it."""
    loop = EngineLoop(engine, Referee(num_threads=2 * BATCH, deadline_s=60.0))
    for index, group in enumerate(groups):
        loop.add(("part", index), len(group), lambda group=group: group)
    num_left = len(groups)
    while num_left:
        finished = loop.update(more=False, timeout_s=2.0).finished
        num_left -= len(finished)
        assert not any(loop.outcome(key).failures for key in finished)


def recorded(engine: Engine, num_trajectories: int) -> list[Request]:
    """All requests of a run, as the engine gets them."""
    requests: list[Request] = []
    submit = engine.submit

    def record(request: Request) -> None:
        requests.append(request)
        submit(request)

    engine.submit = record  # type: ignore[method-assign]
    with_loop(engine, make_groups(engine, num_trajectories))
    engine.submit = submit  # type: ignore[method-assign]
    return requests
