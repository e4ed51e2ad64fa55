"""Messages to tokens: pieces appended turn by turn equal the whole rendered at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drift_ray.errors import ModelError
from drift_ray.rollout.chat import ChatFormat
from drift_ray.types import Message

FEEDBACK = Message(role="user", content="Incorrect. Please think again.")
END = "<|end|>"

# As ChatML: a line break after the end-of-turn token belongs to the template, not to the policy.
NEWLINES = (
    "{% for m in messages %}{{ '<|' ~ m.role ~ '|>\n' ~ m.content ~ '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# As Llama 2: a space between the message and its end-of-turn token.
SPACE_BEFORE_END = NEWLINES.replace("m.content ~ '<|end|>\n'", "(m.content|trim) ~ ' <|end|>'")
# As SmolLM2: a system message of the template's own where the conversation has none.
OWN_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ '<|system|>\nBe helpful.<|end|>\n' }}{% endif %}"
    + NEWLINES
)
TEMPLATES = {"nano": None, "chatml": NEWLINES, "smollm2": OWN_SYSTEM}

# Sampled text cannot hold markers: these are tokens, not characters.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=20)


def with_template(tokenizer: Any, template: str | None) -> Any:
    if template is None:
        return tokenizer
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def render(tokenizer: Any, messages: list[Message]) -> str:
    return str(
        tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in messages],
            tokenize=False,
            add_generation_prompt=True,
        )
    )


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("prefill", ["<think>", "<answer>"])
@given(question=TEXT, replies=st.lists(TEXT, max_size=4), system=st.none() | TEXT)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_turn_by_turn_equals_the_whole_conversation(
    nano_tokenizer: Any,
    template: str | None,
    prefill: str,
    question: str,
    replies: list[str],
    system: str | None,
) -> None:
    tokenizer = with_template(nano_tokenizer, template)
    chat = ChatFormat(tokenizer, prefill)
    messages = [Message(role="user", content=question)]
    if system is not None:
        messages.insert(0, Message(role="system", content=system))
    token_ids = chat.opening(messages)
    for reply in replies:
        sampled = encode(tokenizer, reply + END)
        token_ids += sampled + chat.continuation(sampled, FEEDBACK)
        messages += [Message(role="assistant", content=prefill + reply), FEEDBACK]
    assert token_ids == encode(tokenizer, render(tokenizer, messages) + prefill)


@pytest.mark.parametrize(
    "template",
    [*TEMPLATES.values(), SPACE_BEFORE_END],
    ids=[*TEMPLATES, "llama2"],
)
@pytest.mark.parametrize("reply", ["57</answer>", "57", ""])
def test_every_turn_is_closed_exactly_once(
    nano_tokenizer: Any, template: str | None, reply: str
) -> None:
    tokenizer = with_template(nano_tokenizer, template)
    chat = ChatFormat(tokenizer, "<answer>")
    (end,) = encode(tokenizer, END)
    (user,) = encode(tokenizer, "<|user|>")
    for sampled in (encode(tokenizer, reply + END), encode(tokenizer, reply)):
        whole = sampled + chat.continuation(sampled, FEEDBACK)
        assert whole[: len(sampled)] == sampled
        assert whole[: whole.index(user)].count(end) == 1
        assert whole[-1:] == encode(tokenizer, "<answer>")


def test_a_turn_cut_off_by_its_length_gets_the_same_tail_plus_the_end_token(
    nano_tokenizer: Any,
) -> None:
    chat = ChatFormat(nano_tokenizer, "<answer>")
    cut, ended = encode(nano_tokenizer, "57"), encode(nano_tokenizer, "57" + END)
    assert cut + chat.continuation(cut, FEEDBACK) == ended + chat.continuation(ended, FEEDBACK)


def test_the_cached_tail_is_not_shared_with_callers(nano_tokenizer: Any) -> None:
    chat = ChatFormat(nano_tokenizer, "<answer>")
    first = list(chat.continuation([], FEEDBACK))
    chat.continuation([], FEEDBACK).append(7)
    assert list(chat.continuation([], FEEDBACK)) == first


def test_another_feedback_has_another_tail(nano_tokenizer: Any) -> None:
    chat = ChatFormat(nano_tokenizer, "<answer>")
    other = Message(role="user", content="1+1=?")
    assert encode(nano_tokenizer, "1+1=?") == chat.continuation([], other)[2:-3]
    assert chat.continuation([], other) != chat.continuation([], FEEDBACK)


def test_decoding_drops_markers_and_keeps_tags(nano_tokenizer: Any) -> None:
    chat = ChatFormat(nano_tokenizer, "<answer>")
    assert chat.decode(encode(nano_tokenizer, "5 ½ 7</answer>" + END)) == "5 ½ 7</answer>"


def test_a_tokenizer_without_a_template_is_a_model_error(nano_tokenizer: Any) -> None:
    tokenizer = with_template(nano_tokenizer, "")
    tokenizer.name_or_path = "org/base-model"
    with pytest.raises(ModelError, match="org/base-model has no chat template"):
        ChatFormat(tokenizer, "<answer>")


def test_a_template_that_rewrites_assistant_messages_is_a_model_error(nano_tokenizer: Any) -> None:
    template = NEWLINES.replace("m.content ~", "(m.content if m.role == 'user' else '…') ~")
    chat = ChatFormat(with_template(nano_tokenizer, template), "<answer>")
    with pytest.raises(ModelError, match="changes assistant messages"):
        chat.continuation([], FEEDBACK)


def test_a_template_that_refuses_a_role_is_a_model_error(nano_tokenizer: Any) -> None:
    refusal = "{{ raise_exception('System role not supported') if messages[0].role == 'system' }}"
    chat = ChatFormat(with_template(nano_tokenizer, refusal + NEWLINES), "<answer>")
    assert chat.opening([FEEDBACK])
    with pytest.raises(ModelError, match="System role not supported"):
        chat.opening([Message(role="system", content="Be brief."), FEEDBACK])
