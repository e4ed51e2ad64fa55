"""Tokenizer, chat template and context window of the model, as the rollouts will use them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from drift_ray.config import EnvironmentConfig, ModelConfig, RunConfig
from drift_ray.doctor.findings import Finding, ok, warning
from drift_ray.errors import ModelError
from drift_ray.models import resolve_model
from drift_ray.rollout.chat import ChatFormat
from drift_ray.tasks.parsing import parse_response, prefill
from drift_ray.types import Message

_SAMPLE = "It is 12+34=46.\nSo: 46 \u00b7 1 = 46.</think><answer>46</answer>"
_SHOWN_TOKENS = 8


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokenizer of a model folder.

    Raises:
        ModelError: There is no such model, or transformers cannot read its tokenizer.
    """
    from transformers import AutoTokenizer

    folder = resolve_model(config.path)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as reason:
        first = (str(reason) or type(reason).__name__).splitlines()[0]
        raise ModelError(
            f"transformers cannot load the tokenizer of {folder}: {first}",
            "Save it with save_pretrained(), or set model.trust_remote_code if it brings code.",
        ) from None


def check_tokenizer(config: RunConfig) -> Iterator[Finding]:
    """All that depends on the tokenizer and its chat template.

    Raises:
        ModelError: There is none of either, or the template refuses the messages of the task.
    """
    tokenizer = load_tokenizer(config.model)
    environment = config.task.environment
    chat = ChatFormat(tokenizer, prefill(environment.think), config.model.history)
    yield round_trip(tokenizer)
    yield prefill_boundary(tokenizer, chat, opening_messages(environment))
    yield template_drift(tokenizer, chat, environment)


def opening_messages(environment: EnvironmentConfig) -> list[Message]:
    """What a trajectory of unary feedback begins with."""
    question = environment.user_template.replace("{question}", "What is 12+34?")
    messages = [Message(role="user", content=question)]
    if environment.system_prompt is not None:
        messages.insert(0, Message(role="system", content=environment.system_prompt))
    return messages


def round_trip(tokenizer: Any) -> Finding:
    """Whether text that is encoded and decoded is what it was."""
    ids = tokenizer.encode(_SAMPLE, add_special_tokens=False)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    if text == _SAMPLE:
        return ok("tokenizer", f"round trip: {len(ids)} tokens give the same text")
    return warning(
        "tokenizer",
        f"A round trip changes text: {_SAMPLE!r} becomes {text!r}.",
        "Answers are read off decoded text, so look at what is lost; training is not affected, "
        "since it uses the sampled ids.",
    )


def prefill_boundary(tokenizer: Any, chat: ChatFormat, messages: Sequence[Message]) -> Finding:
    """Whether the prefill begins with a token of its own, after the template's last one."""
    with_prefill = chat.opening(messages)
    without = ChatFormat(tokenizer, "", chat.history).opening(messages)
    if with_prefill[: len(without)] == without:
        num = len(with_prefill) - len(without)
        return ok("prefill", f"{chat.prefill!r} is {num} tokens after the template's own")
    return warning(
        "prefill",
        f"{chat.prefill!r} merges with the end of the chat template, which may open the thoughts "
        "itself.",
        "Look at the prompt with `drift-ray inspect` after a small rollout; "
        "task.environment.think=false begins with <answer> in its place.",
    )


def template_drift(tokenizer: Any, chat: ChatFormat, environment: EnvironmentConfig) -> Finding:
    """Whether a second turn's prompt is the same appended and rendered anew."""
    opening = opening_messages(environment)
    said = _SAMPLE if environment.think else "46</answer>"
    sampled = [*tokenizer.encode(said, add_special_tokens=False)]
    if tokenizer.eos_token_id is not None:
        sampled.append(tokenizer.eos_token_id)
    feedback = Message(role="user", content="Incorrect. Please think again.")
    appended = [*chat.opening(opening), *sampled, *chat.continuation(sampled, feedback)]
    answer = parse_response(
        chat.prefill + said, think=environment.think, max_actions_per_turn=0
    ).canonical_text
    rendered = chat.opening([*opening, Message(role="assistant", content=answer), feedback])
    if appended == rendered:
        return ok("chat template", "a second turn is the same appended and rendered anew")
    place = next(
        (i for i, (a, b) in enumerate(zip(appended, rendered, strict=False)) if a != b),
        min(len(appended), len(rendered)),
    )
    there, here = (
        tokenizer.decode(ids[place : place + _SHOWN_TOKENS]) for ids in (appended, rendered)
    )
    return warning(
        "chat template",
        f"From token {place} on, a second turn's prompt differs: appended {there!r}, rendered anew "
        f"{here!r} (model.history is {chat.history}).",
        "append trains on exactly what was sampled; choose model.history=template if the deployed "
        "chat renders the history anew, for example without old thoughts.",
    )


def check_context(config: RunConfig) -> Iterator[Finding]:
    """The longest trajectory against the context window in the model's ``config.json``.

    Raises:
        ModelError: There is no such model, or its configuration is no JSON.
    """
    folder = resolve_model(config.model.path)
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as reason:
        raise ModelError(
            f"{folder / 'config.json'} is no JSON: {reason}", "Copy the model again."
        ) from None
    window = described.get("max_position_embeddings") if isinstance(described, dict) else None
    if not isinstance(window, int):
        yield ok("context window", "the model's config.json names none")
        return
    turns = config.task.environment.max_turns
    for name, sampling in (
        ("rollout.sampling", config.rollout.sampling),
        ("evaluation.sampling", config.evaluation.sampling),
    ):
        most = turns * sampling.max_tokens
        if sampling.max_tokens_per_traj is not None:
            most = min(most, sampling.max_tokens_per_traj)
        if most < window:
            yield ok("context window", f"{name}: at most {most:,} of {window:,} tokens are sampled")
        else:
            yield warning(
                "context window",
                f"{name}: {turns} turns of {sampling.max_tokens:,} tokens are more than the "
                f"model's {window:,}.",
                f"Long trajectories end early; lower {name}.max_tokens or "
                "task.environment.max_turns.",
            )
