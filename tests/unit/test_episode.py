"""One trajectory: token continuity, spans, log-probabilities, seeds and endings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drift_ray.rollout.episode import Episode, turn_seed
from drift_ray.types import EndReason, Prompt, StopReason, Trajectory
from tests.unit.scripted import ScriptedEngine, episode, random_reply

PROMPT = Prompt(prompt_id="p", task="t", question="48+37=?", gold="85")
SEEDS = st.integers(0, 2**31 - 1)
IDS = st.text(max_size=8)


def play_alone(each: Episode, engine: ScriptedEngine) -> Trajectory:
    opened(each)
    while not each.done:
        each.complete(engine.complete(request := each.request()))
        each.react(each.pending_call()())
        engine.requests[request.request_id] = request
    return each.trajectory()


def opened(each: Episode) -> Episode:
    each.react(each.pending_call()())
    return each


def scripted(tokenizer: Any, *replies: str) -> ScriptedEngine:
    """An engine that gives these replies turn by turn."""

    def reply(request: Any) -> list[int]:
        text = replies[int(request.request_id.split("/")[-2])]
        return list(tokenizer.encode(text, add_special_tokens=False))

    return ScriptedEngine(reply)


def test_the_seed_of_a_turn_is_pinned() -> None:
    # Another value would silently change what a resumed run samples.
    assert turn_seed(0, "addition-48+37", 3, 1) == 1679699256096139913


@given(SEEDS, IDS, st.integers(0, 999), st.integers(0, 99))
def test_the_seed_of_a_turn_depends_on_each_argument(
    run: int, prompt: str, index: int, turn: int
) -> None:
    seed = turn_seed(run, prompt, index, turn)
    assert 0 <= seed < 2**63
    others = {
        turn_seed(run + 1, prompt, index, turn),
        turn_seed(run, prompt + "x", index, turn),
        turn_seed(run, prompt, index + 1, turn),
        turn_seed(run, prompt, index, turn + 1),
        turn_seed(run, prompt, turn, index) if index != turn else -1,
    }
    assert len(others | {seed}) == 6


def test_arguments_of_the_seed_do_not_run_into_each_other() -> None:
    assert turn_seed(1, "1", 1, 11) != turn_seed(1, "1", 11, 1)
    assert turn_seed(1, "p\x001", 2, 3) != turn_seed(1, "p", 1, 23)
    assert turn_seed(11, "p", 0, 0) != turn_seed(1, "1p", 0, 0)


def test_a_success_on_the_second_turn(nano_tokenizer: Any) -> None:
    engine = scripted(nano_tokenizer, "75</answer><|end|>", " 8 5 </answer><|end|>")
    record = play_alone(episode(PROMPT, nano_tokenizer, trajectory_index=3, seed=5), engine)
    assert record.end_reason is EndReason.SUCCESS
    assert (record.prompt_id, record.trajectory_index, record.seed) == ("p", 3, 5)
    assert (record.question, record.gold, record.task) == ("48+37=?", "85", "t")
    assert record.first_success_turn == 2
    assert record.format_penalty == 0
    assert [m.role for m in record.messages] == ["user", "assistant", "user", "assistant"]
    first, second = record.turns
    assert (first.text, first.answers, first.reward) == ("<answer>75</answer>", ("75",), 0.0)
    assert second.text == "<answer> 8 5 </answer>"
    assert second.canonical_text == "<answer>8 5</answer>" == record.messages[-1].content
    assert (second.answer_norms, second.reward) == (("85",), 1.0)
    ids = record.token_ids
    assert nano_tokenizer.decode(ids) == (
        "<|user|>48+37=?<|end|><|assistant|><answer>75</answer><|end|>"
        "<|user|>Incorrect. Please think again.<|end|><|assistant|><answer> 8 5 </answer><|end|>"
    )
    assert len(ids) == second.token_end  # nothing follows the last sampled token


def test_failures_cost_their_penalty_and_end_after_the_last_turn(nano_tokenizer: Any) -> None:
    engine = scripted(nano_tokenizer, "85<|end|>", "85", "8</answer><|end|>")
    record = play_alone(episode(PROMPT, nano_tokenizer, max_turns=3), engine)
    assert record.end_reason is EndReason.MAX_TURNS
    assert record.first_success_turn is None
    assert record.format_penalty == pytest.approx(-0.2)
    assert [turn.format_ok for turn in record.turns] == [False, False, True]
    assert record.messages[-1].role == "assistant"


def test_an_empty_completion_is_a_turn(nano_tokenizer: Any) -> None:
    engine = scripted(nano_tokenizer, "", "85</answer>")
    record = play_alone(episode(PROMPT, nano_tokenizer), engine)
    assert record.turns[0].token_start == record.turns[0].token_end
    assert record.turns[0].text == "<answer>"
    assert record.first_success_turn == 2


@pytest.mark.parametrize("room", [0, -1])
def test_no_room_before_the_first_turn(nano_tokenizer: Any, room: int) -> None:
    opening = len(opened(episode(PROMPT, nano_tokenizer)).request().token_ids)
    each = opened(episode(PROMPT, nano_tokenizer, max_model_len=opening + room))
    assert each.done
    record = each.trajectory()
    assert record.end_reason is EndReason.CONTEXT_WINDOW
    assert record.turns == ()
    assert len(record.token_ids) == opening
    assert np.isnan(record.logprobs).all()
    assert record.first_success_turn is None


def test_the_last_token_of_room_is_used(nano_tokenizer: Any) -> None:
    opening = len(opened(episode(PROMPT, nano_tokenizer)).request().token_ids)
    each = episode(PROMPT, nano_tokenizer, max_model_len=opening + 1)
    engine = scripted(nano_tokenizer, "85</answer>")
    record = play_alone(each, engine)
    assert [request.max_tokens for request in engine.requests.values()] == [1]
    assert record.end_reason is EndReason.CONTEXT_WINDOW
    (turn,) = record.turns
    assert (turn.token_end - turn.token_start, turn.stop_reason) == (1, StopReason.LENGTH)
    assert turn.text == "<answer>8"


def test_a_record_before_the_end_is_a_bug(nano_tokenizer: Any) -> None:
    with pytest.raises(RuntimeError, match="not over"):
        episode(PROMPT, nano_tokenizer).trajectory()


def test_requests_do_not_share_their_tokens_with_the_episode(nano_tokenizer: Any) -> None:
    each = opened(episode(PROMPT, nano_tokenizer))
    each.request().token_ids.append(-1)
    assert -1 not in each.request().token_ids


@given(seed=SEEDS, max_model_len=st.integers(1, 90), max_tokens=st.integers(1, 9))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_record_holds_exactly_what_was_asked_and_sampled(
    nano_tokenizer: Any, seed: int, max_model_len: int, max_tokens: int
) -> None:
    engine = ScriptedEngine(random_reply(nano_tokenizer))
    each = episode(
        PROMPT, nano_tokenizer, seed=seed, max_model_len=max_model_len, max_tokens=max_tokens
    )
    record = play_alone(each, engine)
    requests = [engine.requests[f"p/0/{k}/1"] for k in range(len(record.turns))]
    assert len(engine.requests) == len(requests)
    assert record.token_ids.dtype == np.int32
    assert record.logprobs.dtype == np.float32
    assert record.logprobs.shape == record.token_ids.shape
    sampled = np.zeros(len(record.token_ids), bool)
    for turn, request in zip(record.turns, requests, strict=True):
        completion = engine.complete(request)
        span = slice(turn.token_start, turn.token_end)
        # Token continuity: what came before the turn in the record is what the engine was given.
        assert record.token_ids[: turn.token_start].tolist() == request.token_ids
        assert record.token_ids[span].tolist() == completion.token_ids.tolist()
        assert record.logprobs[span].tolist() == completion.logprobs.tolist()
        assert turn.stop_reason is completion.stop_reason
        assert request.seed == turn_seed(seed, "p", 0, turn.turn_index)
        assert request.max_tokens == min(max_tokens, max_model_len - len(request.token_ids)) >= 1
        assert turn.token_end <= max_model_len
        sampled[span] = True
    assert (np.isnan(record.logprobs) == ~sampled).all()
    full = record.end_reason is EndReason.CONTEXT_WINDOW
    assert full == (len(record.token_ids) >= max_model_len and record.messages[-1].role == "user")
    rewards = [turn.reward for turn in record.turns]
    assert record.first_success_turn == (rewards.index(1.0) + 1 if 1.0 in rewards else None)
    assert record.format_penalty == pytest.approx(-0.1 * sum(not t.format_ok for t in record.turns))
