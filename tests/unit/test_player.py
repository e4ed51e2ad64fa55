"""Many episodes on one engine: no barrier, no influence on each other."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drift_ray.rollout import player
from drift_ray.rollout.episode import Episode
from drift_ray.rollout.protocol import Completion, Refusal, Request
from drift_ray.types import FailureCause, Prompt, Trajectory
from tests.unit.scripted import (
    PromptReferee,
    ScriptedEngine,
    episode,
    play,
    prompts,
    random_reply,
)

GROUP_SIZE = 3
PROMPTS = prompts(str(k) for k in range(5))


def episodes(tokenizer: Any, chosen: list[Prompt]) -> list[Episode]:
    return [
        episode(prompt, tokenizer, trajectory_index=index, max_model_len=70, seed=1)
        for prompt in chosen
        for index in range(GROUP_SIZE)
    ]


def record(t: Trajectory) -> tuple[object, ...]:
    return (t.token_ids.tolist(), t.logprobs.tobytes(), t.turns, t.messages, t.end_reason)


def by_name(trajectories: list[Trajectory]) -> dict[tuple[str, int], tuple[object, ...]]:
    named = {(t.prompt_id, t.trajectory_index): record(t) for t in trajectories}
    assert len(named) == len(trajectories)
    return named


@given(order=st.randoms(use_true_random=False), keep=st.integers(1, 5), slow=st.integers(1, 9))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_trajectory_does_not_depend_on_what_is_played_beside_it(
    nano_tokenizer: Any, order: random.Random, keep: int, slow: int
) -> None:
    reply = random_reply(nano_tokenizer)
    alone = by_name(
        [
            trajectory
            for each in episodes(nano_tokenizer, PROMPTS)
            for trajectory in play(ScriptedEngine(reply), [each])
        ]
    )
    assert len(alone) == len(PROMPTS) * GROUP_SIZE
    some = episodes(nano_tokenizer, order.sample(PROMPTS, keep))
    order.shuffle(some)
    engine = ScriptedEngine(reply, num_steps=lambda request: 1 + request.seed % slow)
    together = by_name(list(play(engine, some)))
    assert len(together) == keep * GROUP_SIZE
    assert together.items() <= alone.items()
    assert not engine.in_flight


def test_trajectories_of_a_group_differ(nano_tokenizer: Any) -> None:
    engine = ScriptedEngine(random_reply(nano_tokenizer))
    group = list(play(engine, episodes(nano_tokenizer, PROMPTS[:1])))
    assert len({tuple(t.token_ids.tolist()) for t in group}) > 1


def test_there_is_no_barrier(nano_tokenizer: Any) -> None:
    slow, fast = prompts(["1", "1"])

    def num_steps(request: Request) -> int:
        return 100 if request.request_id.startswith(slow.prompt_id) else 1

    wrong = nano_tokenizer.encode("2</answer><|end|>", add_special_tokens=False)
    engine = ScriptedEngine(lambda _: wrong, num_steps)
    playing = play(engine, [episode(p, nano_tokenizer, max_turns=4) for p in (slow, fast)])
    first = next(playing)
    assert (first.prompt_id, len(first.turns)) == (fast.prompt_id, 4)
    assert list(engine.in_flight) == [f"{slow.prompt_id}/0/0/1"]  # still its first turn
    assert [t.prompt_id for t in playing] == [slow.prompt_id]


def test_all_first_turns_are_in_flight_at_once(nano_tokenizer: Any) -> None:
    class Watched(ScriptedEngine):
        most = 0

        def step(self) -> Any:
            self.most = max(self.most, len(self.in_flight))
            return super().step()

    engine = Watched(random_reply(nano_tokenizer))
    list(play(engine, episodes(nano_tokenizer, PROMPTS)))
    assert engine.most == len(PROMPTS) * GROUP_SIZE


def test_episodes_without_room_never_reach_the_engine(nano_tokenizer: Any) -> None:
    engine = ScriptedEngine(random_reply(nano_tokenizer))
    one = episode(PROMPTS[0], nano_tokenizer, max_model_len=1)
    ((_, failure),) = player.play(engine, [one], PromptReferee())
    assert failure is not None
    assert failure.cause is FailureCause.CONTEXT_WINDOW  # a failure, not a return of 0
    assert not engine.requests


def test_what_the_engine_cannot_complete_fails_alone(nano_tokenizer: Any) -> None:
    class Forgetful(ScriptedEngine):
        def step(self) -> list[Completion | Refusal]:
            return [
                Refusal(request_id=each.request_id, error=TimeoutError("the server is gone"))
                if each.request_id == "p1/0/1/1"
                else each
                for each in super().step()
            ]

    wrong = nano_tokenizer.encode("99</answer><|end|>", add_special_tokens=False)
    chosen = [episode(prompt, nano_tokenizer, max_turns=3) for prompt in PROMPTS[:3]]
    ended = list(player.play(Forgetful(lambda _: wrong), chosen, PromptReferee()))
    assert [(each.prompt.prompt_id, failure is None) for each, failure in ended] == [
        ("p1", False),
        ("p0", True),
        ("p2", True),
    ]
    failure = ended[0][1]
    assert failure is not None
    assert (failure.cause, failure.turn_index) == (FailureCause.ENGINE, 1)
    assert failure.message == "the server is gone"
    assert "TimeoutError" in failure.trace


def test_a_player_knows_who_is_under_way_and_who_keeps_the_engine_busy(
    nano_tokenizer: Any,
) -> None:
    wrong = nano_tokenizer.encode("99</answer><|end|>", add_special_tokens=False)
    driven = player.Player(ScriptedEngine(lambda _: wrong), PromptReferee())
    assert (driven.num_in_flight, driven.num_engaged) == (0, 0)
    driven.add(episode(PROMPTS[0], nano_tokenizer, max_turns=2))
    driven.add(episode(PROMPTS[1], nano_tokenizer, max_model_len=1))
    assert (driven.num_in_flight, driven.num_engaged) == (2, 2)  # both are opening
    ((_, failure),) = driven.advance()
    assert failure is not None
    assert failure.cause is FailureCause.CONTEXT_WINDOW
    assert (driven.num_in_flight, driven.num_engaged) == (1, 0)  # its first turn is judged
    assert driven.advance() == []
    (outcome,) = driven.advance()
    assert outcome[1] is None
    assert (driven.num_in_flight, driven.num_engaged) == (0, 0)


def test_nothing_to_play(nano_tokenizer: Any) -> None:
    assert list(play(ScriptedEngine(random_reply(nano_tokenizer)), [])) == []


@pytest.mark.parametrize("prompt_ids", [("a", "a/0"), ("a/0", "a/0/0"), ("", "/0")])
def test_request_ids_are_unique_whatever_the_prompt_ids(
    nano_tokenizer: Any, prompt_ids: tuple[str, str]
) -> None:
    engine = ScriptedEngine(random_reply(nano_tokenizer))  # refuses a request id it has seen
    chosen = [Prompt(prompt_id=name, task="t", question="q", gold="1") for name in prompt_ids]
    assert len(list(play(engine, episodes(nano_tokenizer, chosen)))) == 2 * GROUP_SIZE
