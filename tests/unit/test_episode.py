"""One trajectory: token continuity, spans, log-probabilities, seeds and endings."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drift_ray.rollout.episode import Episode, turn_seed
from drift_ray.rollout.protocol import Request
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

    def reply(request: Request) -> list[int]:
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
    assert (turn.token_end - turn.token_start, turn.stop_reason) == (1, StopReason.CONTEXT_WINDOW)
    assert turn.text == "<answer>8"


@pytest.mark.parametrize(
    ("max_tokens", "max_tokens_per_traj", "room", "bound"),
    [
        (2, 3, 4, StopReason.LENGTH),
        (4, 2, 3, StopReason.TRAJECTORY_LENGTH),
        (4, 3, 2, StopReason.CONTEXT_WINDOW),
        (4, None, 2, StopReason.CONTEXT_WINDOW),
        (2, 2, 2, StopReason.LENGTH),
        (3, 2, 2, StopReason.TRAJECTORY_LENGTH),
    ],
)
def test_a_turn_that_is_cut_off_names_the_tightest_limit(
    nano_tokenizer: Any,
    max_tokens: int,
    max_tokens_per_traj: int | None,
    room: int,
    bound: StopReason,
) -> None:
    opening = len(opened(episode(PROMPT, nano_tokenizer)).request().token_ids)
    each = episode(
        PROMPT,
        nano_tokenizer,
        max_tokens=max_tokens,
        max_tokens_per_traj=max_tokens_per_traj,
        max_model_len=opening + room,
        max_turns=1,
    )
    engine = scripted(nano_tokenizer, "12345</answer>")
    (turn,) = play_alone(each, engine).turns
    assert (turn.token_end - turn.token_start, turn.stop_reason) == (2, bound)


def test_a_turn_that_ends_by_itself_on_the_last_token_is_not_cut_off(nano_tokenizer: Any) -> None:
    each = episode(PROMPT, nano_tokenizer, max_tokens=9, max_tokens_per_traj=3)
    record = play_alone(each, scripted(nano_tokenizer, "7</answer><|end|>"))
    (turn,) = record.turns
    assert turn.stop_reason is StopReason.STOP
    assert record.end_reason is EndReason.MAX_TOKENS


def test_the_tokens_of_a_trajectory_are_shared_by_its_turns(nano_tokenizer: Any) -> None:
    # Three tokens a turn, as long as they last.
    engine = scripted(nano_tokenizer, *["7</answer><|end|>"] * 5)
    record = play_alone(episode(PROMPT, nano_tokenizer, max_tokens_per_traj=8), engine)
    assert [request.max_tokens for request in engine.requests.values()] == [8, 5, 2]
    stop = StopReason.STOP
    reasons = [turn.stop_reason for turn in record.turns]
    assert reasons == [stop, stop, StopReason.TRAJECTORY_LENGTH]
    assert record.end_reason is EndReason.MAX_TOKENS
    # Nobody will answer a feedback, so there is none.
    assert record.messages[-1].role == "assistant"
    assert len(record.token_ids) == record.turns[-1].token_end


@pytest.mark.parametrize(
    ("reply", "max_turns", "reason"),
    [
        ("85</answer>", 5, EndReason.SUCCESS),
        ("75</answer>", 1, EndReason.MAX_TURNS),
        ("75</answer>", 5, EndReason.MAX_TOKENS),
    ],
)
def test_the_last_token_may_still_decide(
    nano_tokenizer: Any, reply: str, max_turns: int, reason: EndReason
) -> None:
    each = episode(PROMPT, nano_tokenizer, max_turns=max_turns, max_tokens_per_traj=3)
    record = play_alone(each, scripted(nano_tokenizer, reply))
    assert record.end_reason is reason
    assert len(record.turns) == 1


# As Qwen 3: thoughts of earlier turns are not shown again.
FORGETFUL = (
    "{% for m in messages %}"
    "{{ '<|' ~ m.role ~ '|>' ~ m.content.split('</think>')[-1] ~ '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.fixture(scope="module")
def forgetful_tokenizer(nano_tokenizer: Any) -> Any:
    tokenizer = copy.deepcopy(nano_tokenizer)
    tokenizer.chat_template = FORGETFUL
    return tokenizer


def test_a_history_without_thoughts_begins_anew(forgetful_tokenizer: Any) -> None:
    replies = ["7+8</think><answer>75</answer><|end|>", "so</think><answer>85</answer><|end|>"]
    engine = scripted(forgetful_tokenizer, *replies)
    each = episode(PROMPT, forgetful_tokenizer, history="template", max_tokens=99, think=True)
    record = play_alone(each, engine)
    assert record.end_reason is EndReason.SUCCESS
    first, second = record.turns
    assert (first.prompt_start, second.prompt_start) == (0, first.token_end)
    decode = forgetful_tokenizer.decode
    assert decode(record.token_ids[: first.token_end]) == (
        "<|user|>48+37=?<|end|><|assistant|><think>7+8</think><answer>75</answer><|end|>"
    )
    assert decode(record.token_ids[first.token_end :]) == (
        "<|user|>48+37=?<|end|><|assistant|><answer>75</answer><|end|>"
        "<|user|>Incorrect. Please think again.<|end|>"
        "<|assistant|><think>so</think><answer>85</answer><|end|>"
    )
    given = [request.token_ids for request in engine.requests.values()]
    assert given == prompts_of(record)
    # The messages keep what was said.
    assert record.messages[1].content == "<think>7+8</think><answer>75</answer>"


def test_only_the_prompt_at_hand_has_to_fit(forgetful_tokenizer: Any) -> None:
    thought = "1+1=?" * 9
    engine = scripted(
        forgetful_tokenizer, *[f"{thought}</think><answer>75</answer><|end|>"] * 3, "85"
    )

    def played(history: Literal["append", "template"]) -> Trajectory:
        each = episode(
            PROMPT,
            forgetful_tokenizer,
            history=history,
            think=True,
            max_tokens=99,
            max_model_len=90,
            max_turns=3,
        )
        return play_alone(each, engine)

    assert played("append").end_reason is EndReason.CONTEXT_WINDOW
    record = played("template")
    assert (len(record.turns), record.end_reason) == (3, EndReason.MAX_TURNS)
    assert len(record.token_ids) > 90
    assert all(turn.token_end - turn.prompt_start <= 90 for turn in record.turns)


def test_a_rendered_history_that_departs_from_nothing_is_the_appended_one(
    nano_tokenizer: Any,
) -> None:
    replies = ["75</answer><|end|>", "7", "1</answer>", "<|end|>", "85</answer><|end|>"]

    def played(history: Literal["append", "template"]) -> Trajectory:
        engine = scripted(nano_tokenizer, *replies)
        return play_alone(episode(PROMPT, nano_tokenizer, history=history), engine)

    appended, rendered = played("append"), played("template")
    assert rendered.token_ids.tolist() == appended.token_ids.tolist()
    assert rendered.logprobs.tobytes() == appended.logprobs.tobytes()
    assert (rendered.turns, rendered.messages) == (appended.turns, appended.messages)
    assert {turn.prompt_start for turn in rendered.turns} == {0}
    assert len(rendered.turns) == 5


def test_a_message_that_is_stored_in_another_form_begins_anew(nano_tokenizer: Any) -> None:
    engine = scripted(nano_tokenizer, " 7 </answer><|end|>", "85</answer><|end|>")
    record = play_alone(episode(PROMPT, nano_tokenizer, history="template"), engine)
    first, second = record.turns
    assert second.prompt_start == first.token_end
    assert "<answer>7</answer>" in nano_tokenizer.decode(prompts_of(record)[1])


def prompts_of(record: Trajectory) -> list[list[int]]:
    """What a record says the engine was given, turn by turn."""
    return [
        record.token_ids[turn.prompt_start : turn.token_start].tolist() for turn in record.turns
    ]


def test_a_record_before_the_end_is_a_bug(nano_tokenizer: Any) -> None:
    with pytest.raises(RuntimeError, match="not over"):
        episode(PROMPT, nano_tokenizer).trajectory()


def test_requests_do_not_share_their_tokens_with_the_episode(nano_tokenizer: Any) -> None:
    each = opened(episode(PROMPT, nano_tokenizer))
    each.request().token_ids.append(-1)
    assert -1 not in each.request().token_ids


@pytest.mark.parametrize("history", ["append", "template"])
@given(
    seed=SEEDS,
    max_model_len=st.integers(1, 90),
    max_tokens=st.integers(1, 9),
    max_tokens_per_traj=st.none() | st.integers(1, 30),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_record_holds_exactly_what_was_asked_and_sampled(
    nano_tokenizer: Any,
    history: Literal["append", "template"],
    seed: int,
    max_model_len: int,
    max_tokens: int,
    max_tokens_per_traj: int | None,
) -> None:
    engine = ScriptedEngine(random_reply(nano_tokenizer))
    each = episode(
        PROMPT,
        nano_tokenizer,
        seed=seed,
        max_model_len=max_model_len,
        max_tokens=max_tokens,
        max_tokens_per_traj=max_tokens_per_traj,
        history=history,
    )
    record = play_alone(each, engine)
    requests = [engine.requests[f"p/0/{k}/1"] for k in range(len(record.turns))]
    assert len(engine.requests) == len(requests)
    assert record.token_ids.dtype == np.int32
    assert record.logprobs.dtype == np.float32
    assert record.logprobs.shape == record.token_ids.shape
    # What the record says the engine was given is what it was given.
    assert prompts_of(record) == [request.token_ids for request in requests]
    sampled = np.zeros(len(record.token_ids), bool)
    for turn, request in zip(record.turns, requests, strict=True):
        completion = engine.complete(request)
        span = slice(turn.token_start, turn.token_end)
        assert record.token_ids[span].tolist() == completion.token_ids.tolist()
        assert record.logprobs[span].tolist() == completion.logprobs.tolist()
        assert request.seed == turn_seed(seed, "p", 0, turn.turn_index)
        limits = {
            StopReason.LENGTH: max_tokens,
            StopReason.CONTEXT_WINDOW: max_model_len - len(request.token_ids),
        }
        if max_tokens_per_traj is not None:
            limits[StopReason.TRAJECTORY_LENGTH] = max_tokens_per_traj - int(sampled.sum())
        assert request.max_tokens == min(limits.values()) >= 1
        if completion.stop_reason is StopReason.STOP:
            assert turn.stop_reason is StopReason.STOP
        else:
            assert limits[turn.stop_reason] == request.max_tokens == len(completion.token_ids)
        assert turn.token_end - turn.prompt_start <= max_model_len
        sampled[span] = True
    assert (np.isnan(record.logprobs) == ~sampled).all()
    assert each.num_sampled == sampled.sum()
    check_segments(record, history)
    spent = max_tokens_per_traj is not None and sampled.sum() == max_tokens_per_traj
    if record.end_reason is EndReason.MAX_TOKENS:
        assert spent
    if history == "append":
        full = len(record.token_ids) >= max_model_len and record.messages[-1].role == "user"
        assert full == (record.end_reason is EndReason.CONTEXT_WINDOW)
    rewards = [turn.reward for turn in record.turns]
    assert record.first_success_turn == (rewards.index(1.0) + 1 if 1.0 in rewards else None)
    assert record.format_penalty == pytest.approx(-0.1 * sum(not t.format_ok for t in record.turns))


def check_segments(record: Trajectory, history: str) -> None:
    """A prompt goes on from the last turn, or begins right behind it."""
    assert all(turn.prompt_start == 0 for turn in record.turns[:1])
    for before, after in pairwise(record.turns):
        allowed = {before.prompt_start}
        if history == "template":
            allowed.add(before.token_end)
        assert after.prompt_start in allowed
