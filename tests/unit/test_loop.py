"""Groups on one engine: side by side, with failures that are counted and never scored."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from drift_ray.errors import EngineLostError, EngineRequestError, ModelError
from drift_ray.rollout.episode import Episode
from drift_ray.rollout.loop import EngineLoop
from drift_ray.rollout.protocol import Completion, Refusal, Request
from drift_ray.rollout.referee import Referee
from drift_ray.rollout.work import Counts, GroupKey, GroupOutcome, Update
from drift_ray.tasks.environment import StepResult
from drift_ray.types import EndReason, FailureCause, Message
from tests.unit.scripted import ScriptedEngine, episode, prompts, random_reply, trajectory

LONG_S = 60.0
"""Never reached by a test that passes."""


def referee(num_threads: int = 4) -> Referee:
    return Referee(num_threads=num_threads, deadline_s=LONG_S)


class OneTurn:
    """An environment that is content with anything, after ``before`` has returned."""

    def __init__(self, before: Callable[[], object]) -> None:
        self._before = before

    def reset(self) -> tuple[Message, ...]:
        return (Message(role="user", content="1+1=?"),)

    def step(self, text: str) -> StepResult:
        self._before()
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


def add(loop: EngineLoop, name: str, *group: Episode) -> GroupKey:
    loop.add((name, 0), len(group), lambda: group)
    return (name, 0)


def finished(loop: EngineLoop, *keys: GroupKey) -> Update:
    """Wait for these groups, each of which must be told of once; the last update."""
    told: list[GroupKey] = []
    while set(told) != set(keys):
        update = loop.update(more=False, timeout_s=LONG_S)
        assert update.finished, "nothing happened for a long time"
        told += update.finished
    assert len(told) == len(keys)
    return update


class Held(ScriptedEngine):
    """Works only while its gate is open."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.most = 0

    def step(self) -> Sequence[Completion | Refusal]:
        self.most = max(self.most, len(self.in_flight))
        self.entered.set()
        assert self.gate.wait(LONG_S)
        return super().step()


def test_groups_are_played_side_by_side(nano_tokenizer: Any) -> None:
    first, second = prompts(["1", "2"])
    most: list[int] = []

    class Watched(ScriptedEngine):
        def step(self) -> Sequence[Completion | Refusal]:
            most.append(len({name.split("/")[0] for name in self.in_flight}))
            return super().step()

    engine = Watched(random_reply(nano_tokenizer), num_steps=lambda _: 3)
    loop = EngineLoop(engine, referee())
    keys = [
        add(loop, name, episode(prompt, nano_tokenizer))
        for name, prompt in (("a", first), ("b", second))
    ]
    finished(loop, *keys)
    ids = [loop.outcome(key).trajectories[0].prompt_id for key in keys]
    assert ids == [first.prompt_id, second.prompt_id]
    assert max(most) == 2


def test_a_group_is_finished_when_its_last_episode_is(nano_tokenizer: Any) -> None:
    (prompt,) = prompts(["1"])
    slow = f"{prompt.prompt_id}/0/"
    engine = ScriptedEngine(
        random_reply(nano_tokenizer),
        num_steps=lambda request: 50 if request.request_id.startswith(slow) else 1,
    )
    loop = EngineLoop(engine, referee())
    group = [episode(prompt, nano_tokenizer, trajectory_index=i, max_turns=1) for i in range(4)]
    key = add(loop, "a", *group)
    last = finished(loop, key)
    outcome = loop.outcome(key)
    assert {t.trajectory_index for t in outcome.trajectories} == {0, 1, 2, 3}
    assert outcome.trajectories[-1].trajectory_index == 0  # as they ended
    assert last.num_in_flight == 0
    assert last.counts == Counts(
        num_trajectories=4,
        num_solved=sum(t.first_success_turn is not None for t in outcome.trajectories),
        num_sampled_tokens=sum(
            turn.token_end - turn.token_start for t in outcome.trajectories for turn in t.turns
        ),
    )
    assert last.counts.num_sampled_tokens > 0


def test_a_failing_environment_is_tried_again_then_recorded(nano_tokenizer: Any) -> None:
    (prompt,) = prompts(["2"])

    def played(num_raises: int, max_attempts: int) -> tuple[GroupOutcome, Counts, ScriptedEngine]:
        left = [num_raises]

        def judge() -> None:
            if left[0]:
                left[0] -= 1
                raise RuntimeError("the judge is out")

        each = episode(
            prompt,
            nano_tokenizer,
            make_environment=lambda: OneTurn(judge),
            max_attempts=max_attempts,
        )
        engine = ScriptedEngine(random_reply(nano_tokenizer))
        loop = EngineLoop(engine, referee())
        key = add(loop, "a", each)
        last = finished(loop, key)
        return loop.outcome(key), last.counts, engine

    once_more, counts, engine = played(num_raises=1, max_attempts=2)
    assert len(once_more.trajectories) == 1
    assert not once_more.failures
    assert (counts.num_trajectories, counts.num_failures) == (1, 0)
    requests = [(r.token_ids, r.seed) for r in engine.requests.values()]
    assert len(requests) == 2
    assert requests[0] == requests[1]  # what is tried again samples the same
    given_up, counts, _ = played(num_raises=2, max_attempts=2)
    assert not given_up.trajectories
    (failure,) = given_up.failures
    assert failure.cause is FailureCause.ENVIRONMENT
    assert "the judge is out" in failure.message
    assert "RuntimeError" in failure.trace
    assert (failure.prompt_id, failure.trajectory_index) == (prompt.prompt_id, 0)
    assert (counts.num_trajectories, counts.num_failures) == (0, 1)


def test_a_request_the_engine_refuses_fails_alone(nano_tokenizer: Any) -> None:
    bad, good = prompts(["1", "2"])

    class Picky(ScriptedEngine):
        def submit(self, request: Request) -> None:
            if request.request_id.startswith(bad.prompt_id):
                raise EngineRequestError("too long")
            super().submit(request)

    loop = EngineLoop(Picky(random_reply(nano_tokenizer)), referee())
    key = add(loop, "a", episode(bad, nano_tokenizer), episode(good, nano_tokenizer))
    finished(loop, key)
    outcome = loop.outcome(key)
    assert [t.prompt_id for t in outcome.trajectories] == [good.prompt_id]
    assert [f.cause for f in outcome.failures] == [FailureCause.ENGINE]


def test_a_lost_engine_is_told_at_once_and_ever_after(nano_tokenizer: Any) -> None:
    class Lost(ScriptedEngine):
        def step(self) -> list[Completion]:
            raise OSError("the device fell off the bus")

    loop = EngineLoop(Lost(random_reply(nano_tokenizer)), referee())
    add(loop, "a", episode(prompts(["1"])[0], nano_tokenizer))
    for _ in range(2):
        with pytest.raises(EngineLostError, match="OSError: the device fell off") as caught:
            loop.update(more=False, timeout_s=LONG_S)
        assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    ("error", "told"), [(ValueError("no"), EngineLostError), (ModelError("no"), ModelError)]
)
def test_a_group_that_cannot_start_says_why(
    nano_tokenizer: Any, error: Exception, told: type[Exception]
) -> None:
    def start() -> list[Episode]:
        raise error

    loop = EngineLoop(ScriptedEngine(random_reply(nano_tokenizer)), referee())
    loop.add(("a", 0), 1, start)
    with pytest.raises(told, match="no") as caught:
        loop.update(more=False, timeout_s=LONG_S)
    assert type(caught.value) is told


def test_an_engine_that_hangs_is_lost(nano_tokenizer: Any) -> None:
    engine = Held(random_reply(nano_tokenizer))
    loop = EngineLoop(engine, referee(), stall_deadline_s=0.01)
    assert loop.update(more=True, timeout_s=0.05).num_in_flight == 0  # idle is no stall
    add(loop, "a", episode(prompts(["1"])[0], nano_tokenizer))
    assert engine.entered.wait(LONG_S)
    with pytest.raises(EngineLostError, match="not moved"):
        loop.update(more=False, timeout_s=0.05)
    engine.gate.set()


def test_outcomes_are_kept_until_they_are_forgotten(nano_tokenizer: Any) -> None:
    (prompt,) = prompts(["1"])
    loop = EngineLoop(ScriptedEngine(random_reply(nano_tokenizer)), referee())
    key = add(loop, "a", episode(prompt, nano_tokenizer))
    finished(loop, key)
    assert loop.update(more=False, timeout_s=0.0).finished == ()
    assert loop.outcome(key) is loop.outcome(key)
    elsewhere = GroupOutcome(trajectories=[trajectory("q")])
    loop.keep(("b", 7), elsewhere)
    assert loop.outcome(("b", 7)) is elsewhere
    loop.forget([key, ("never", 0)])
    with pytest.raises(KeyError):
        loop.outcome(key)
    assert loop.outcome(("b", 7)) is elsewhere


def test_an_outcome_from_elsewhere_does_not_mix_with_what_is_played_here(
    nano_tokenizer: Any,
) -> None:
    engine = Held(random_reply(nano_tokenizer))
    loop = EngineLoop(engine, referee())
    (prompt,) = prompts(["1"])
    key = add(loop, "a", episode(prompt, nano_tokenizer))
    assert engine.entered.wait(LONG_S)
    loop.keep(key, GroupOutcome(trajectories=[trajectory(prompt.prompt_id)]))
    engine.gate.set()
    finished(loop, key)
    assert len(loop.outcome(key).trajectories) == 1


def test_a_group_may_be_forgotten_while_it_is_played(nano_tokenizer: Any) -> None:
    engine = Held(random_reply(nano_tokenizer))
    loop = EngineLoop(engine, referee())
    key = add(loop, "a", episode(prompts(["1"])[0], nano_tokenizer))
    assert engine.entered.wait(LONG_S)
    loop.forget([key])
    engine.gate.set()
    assert finished(loop, key).counts.num_trajectories == 1
    with pytest.raises(KeyError):
        loop.outcome(key)


@pytest.mark.parametrize(("group_size", "most"), [(1, 4), (3, 6)])
def test_no_more_are_under_way_than_asked_for(
    nano_tokenizer: Any, group_size: int, most: int
) -> None:
    engine = Held(random_reply(nano_tokenizer), num_steps=lambda _: 2)
    loop = EngineLoop(engine, referee(), trajectories_in_flight=4)
    before = loop.update(more=True, timeout_s=LONG_S)
    assert (before.num_wanted, before.num_in_flight) == (5, 0)  # one to wait at the door
    keys = [
        add(
            loop,
            prompt.prompt_id,
            *(episode(prompt, nano_tokenizer, trajectory_index=i) for i in range(group_size)),
        )
        for prompt in prompts(["1"] * 12)
    ]
    assert engine.entered.wait(LONG_S)
    full = loop.update(more=True, timeout_s=0.0)
    assert (full.num_wanted, full.num_in_flight) == (0, 12 * group_size)
    engine.gate.set()
    last = finished(loop, *keys)
    # A group joins as a whole, so its last trajectories may be too many.
    assert group_size < engine.most <= most
    assert last.counts.num_trajectories == 12 * group_size


def test_slow_environments_do_not_starve_the_engine_and_draw_in_so_many(
    nano_tokenizer: Any,
) -> None:
    gate, judging = threading.Event(), threading.Semaphore(0)

    def judge() -> None:
        judging.release()
        assert gate.wait(LONG_S)

    engine = ScriptedEngine(random_reply(nano_tokenizer), max_num_seqs=2)
    loop = EngineLoop(engine, referee(num_threads=20))
    keys = [
        add(
            loop,
            each.prompt_id,
            episode(each, nano_tokenizer, make_environment=lambda: OneTurn(judge)),
        )
        for each in prompts(["1"] * 13)
    ]
    for _ in range(8):  # four times what the engine works on
        assert judging.acquire(timeout=LONG_S)
    held = loop.update(more=True, timeout_s=0.0)
    assert (held.num_wanted, held.num_in_flight) == (0, 13)
    assert len(engine.requests) == 8
    gate.set()
    assert finished(loop, *keys).counts.num_trajectories == 13


def test_having_room_is_news_only_when_more_could_come(nano_tokenizer: Any) -> None:
    loop = EngineLoop(ScriptedEngine(random_reply(nano_tokenizer)), referee())
    began_s = time.monotonic()
    assert loop.update(more=True, timeout_s=LONG_S).num_wanted > 0
    assert time.monotonic() - began_s < LONG_S
    began_s = time.monotonic()
    assert loop.update(more=False, timeout_s=0.05).num_wanted > 0
    assert time.monotonic() - began_s >= 0.05
