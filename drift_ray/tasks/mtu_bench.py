"""Rows of MTU-Bench, whose files differ in their fields, to a question and the expected calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from drift_ray.tasks.benchmark_rows import Fields, Pair, behind_final, behind_mark, boxed, plain

_QUESTIONS = ("question", "problem", "prompt", "query", "context", "text", "task")
_DIALOGUES = ("conversations", "conversation", "messages", "dialogue", "turns", "history")
_CALLS = ("gold", "Action", "action", "target", "label", "answer")
_ANSWERS = (
    *("answer", "final_answer", "final", "target", "label", "output", "response", "completion"),
    *("ground_truth", "gold", "solution", "reference"),
)
_INNER_ANSWERS = (
    *("answer", "final_answer", "final", "value", "text", "output", "response", "label", "target"),
)
_ASKING = {"user", "human", "prompt", "question", "input", "instruction", "system"}
_ANSWERING = {"assistant", "gpt", "bot", "model", "answer"}


def mtu_bench(row: Fields) -> Pair:
    """Question and gold; the gold is ``{"tool": {"key": "value"}}`` where the row has calls."""
    return _question(row), _calls(row) or _answer(row)


def _question(row: Fields) -> str:
    parts = [row.get("instruction"), row.get("input")]
    if told := [part.strip() for part in parts if isinstance(part, str) and part.strip()]:
        return "\n".join(told)
    for name in _QUESTIONS:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
    turns = list(_turns(row))
    asked = [text for role, text, _ in turns if role is None or role in _ASKING]
    if len(asked) == 1:
        return asked[0]
    return "\n".join(f"User: {text}" for text in asked) or "\n".join(text for _, text, _ in turns)


def _turns(row: Fields) -> Iterator[tuple[str | None, str, Any]]:
    """Role (None where a turn has no fields), text and raw content of turns that have text."""
    dialogue = next((row[name] for name in _DIALOGUES if row.get(name)), None)
    for turn in dialogue if isinstance(dialogue, list) else ():
        role, content = None, turn
        if isinstance(turn, dict):
            role = str(_first(turn, "role", "from", "speaker") or "").lower()
            content = _first(turn, "content", "value", "text", "message")
        if text := plain(content):
            yield role, text, content


def _first(turn: Fields, *names: str) -> Any:
    return next((turn[name] for name in names if turn.get(name)), None)


def _calls(row: Fields) -> str:
    for name in _CALLS:
        value = row.get(name)
        if isinstance(value, dict) and value:
            return json.dumps(value, ensure_ascii=False)
        if isinstance(value, str) and value.strip().startswith("{") and value.strip().endswith("}"):
            return value.strip()
    return ""


def _answer(row: Fields) -> str:
    values = [row[name] for name in _ANSWERS if name in row]
    spoken = [content for role, _, content in _turns(row) if role in _ANSWERING]
    return next(filter(None, map(_text, [*values, *reversed(spoken)])), "")


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return next(filter(None, map(_text, reversed(value))), "")
    if isinstance(value, dict):
        inner = [value[name] for name in _INNER_ANSWERS if name in value]
        return next(filter(None, map(_text, inner)), "")
    text = behind_mark(behind_final(plain(value)))
    return boxed(text) or text
