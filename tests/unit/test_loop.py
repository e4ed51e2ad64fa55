"""Parts on one engine: side by side, with failures that are counted and never scored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from drift_ray.errors import EngineRequestError
from drift_ray.rollout.episode import Completion, Episode, Request
from drift_ray.rollout.loop import EngineLoop
from drift_ray.rollout.referee import Referee
from drift_ray.tasks.environment import Environment, StepResult
from drift_ray.types import EndReason, FailureCause, Message, Prompt
from tests.unit.scripted import ScriptedEngine, episode, prompts, random_reply


def referee() -> Referee:
    return Referee(num_threads=4, deadline_s=30.0)


class Raising:
    """An environment that raises in its first step, the first ``num_times`` times."""

    def __init__(self, budget: list[int]) -> None:
        self._budget = budget

    def reset(self) -> tuple[Message, ...]:
        return (Message(role="user", content="1+1=?"),)

    def step(self, text: str) -> StepResult:
        if self._budget[0]:
            self._budget[0] -= 1
            raise RuntimeError("the judge is out")
        return StepResult(
            canonical_text=text,
            answers=(),
            answer_norms=(),
            reward=0.0,
            format_ok=True,
            format_penalty=0.0,
            end_reason=EndReason.SUCCESS,
            feedback=None,
        )


def with_environment(
    each: Episode, make: Callable[[], Environment], max_attempts: int = 1
) -> Episode:
    each._make_environment = make
    each._max_attempts = max_attempts
    return each


def test_parts_are_played_side_by_side(nano_tokenizer: Any) -> None:
    first, second = prompts(["1", "2"])
    most: list[int] = []

    class Watched(ScriptedEngine):
        def step(self) -> list[Completion]:
            most.append(len({name.split("/")[0] for name in self.in_flight}))
            return super().step()

    engine = Watched(random_reply(nano_tokenizer), num_steps=lambda _: 3)
    started = [episode(first, nano_tokenizer), episode(second, nano_tokenizer)]
    loop = EngineLoop(engine, referee())
    # One call hands over both parts: the second waits in the inbox while the first begins.
    futures = [loop.submit(lambda e=each: [e]) for each in started]
    outcomes = [future.result(timeout=60) for future in futures]
    assert [o.trajectories[0].prompt_id for o in outcomes] == [first.prompt_id, second.prompt_id]
    assert max(most) == 2


def test_a_failing_environment_is_tried_again_then_recorded(nano_tokenizer: Any) -> None:
    (prompt,) = prompts(["2"])

    def outcome(num_raises: int, max_attempts: int) -> Any:
        budget = [num_raises]
        each = with_environment(
            episode(prompt, nano_tokenizer), lambda: Raising(budget), max_attempts
        )
        loop = EngineLoop(ScriptedEngine(random_reply(nano_tokenizer)), referee())
        return loop.submit(lambda: [each]).result(timeout=60)

    once_more = outcome(num_raises=1, max_attempts=2)
    assert len(once_more.trajectories) == 1
    assert not once_more.failures
    given_up = outcome(num_raises=2, max_attempts=2)
    assert not given_up.trajectories
    (failure,) = given_up.failures
    assert failure.cause is FailureCause.ENVIRONMENT
    assert "the judge is out" in failure.message
    assert "RuntimeError" in failure.trace
    assert (failure.prompt_id, failure.trajectory_index) == (prompt.prompt_id, 0)


def test_a_request_the_engine_refuses_fails_alone(nano_tokenizer: Any) -> None:
    bad, good = prompts(["1", "2"])

    class Picky(ScriptedEngine):
        def submit(self, request: Request) -> None:
            if request.request_id.startswith(bad.prompt_id):
                raise EngineRequestError("too long")
            super().submit(request)

    loop = EngineLoop(Picky(random_reply(nano_tokenizer)), referee())
    both = [episode(bad, nano_tokenizer), episode(good, nano_tokenizer)]
    outcome = loop.submit(lambda: both).result(timeout=60)
    assert [t.prompt_id for t in outcome.trajectories] == [good.prompt_id]
    assert [f.cause for f in outcome.failures] == [FailureCause.ENGINE]


def test_a_lost_engine_fails_every_part_and_later_ones(nano_tokenizer: Any) -> None:
    class Lost(ScriptedEngine):
        def step(self) -> list[Completion]:
            raise OSError("the device fell off the bus")

    loop = EngineLoop(Lost(random_reply(nano_tokenizer)), referee())
    chosen: list[Prompt] = prompts(["1", "2"])
    futures = [loop.submit(lambda p=p: [episode(p, nano_tokenizer)]) for p in chosen]
    for future in futures:
        with pytest.raises(OSError, match="fell off"):
            future.result(timeout=60)
    with pytest.raises(OSError, match="fell off"):
        loop.submit(list).result(timeout=60)


def test_a_part_that_cannot_start_says_why(nano_tokenizer: Any) -> None:
    def start() -> list[Episode]:
        raise ValueError("no such model")

    loop = EngineLoop(ScriptedEngine(random_reply(nano_tokenizer)), referee())
    with pytest.raises(ValueError, match="no such model"):
        loop.submit(start).result(timeout=60)
