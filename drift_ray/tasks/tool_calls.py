"""Tool calls in a completion, and the metrics of MTU-Bench, as the DRIFT reference has them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drift_ray.tasks.parsing import strip_markup
from drift_ray.types import Verdict

SOFT_DECAY = 0.9
"""Each turn of a dialogue weighs this much of the one before in the soft success rate."""

_OPENING = re.compile("<think>", re.IGNORECASE)
_BOUNDARY = re.compile(r"</think>\s*<answer>", re.IGNORECASE)
_ANSWER = re.compile("<answer>", re.IGNORECASE)
_ANSWER_END = re.compile("</answer>", re.IGNORECASE)
_CALL = re.compile(r"\b(\w+)\s*\(([^)]*)\)")
_ARGUMENT = re.compile(r"""\b(\w+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^,)]+))""")


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """One call of one tool."""

    name: str
    arguments: Mapping[str, Any]
    """By name; always text where a completion was parsed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCallMetrics:
    """How the calls of a dialogue compare with the gold's; each from 0 to 1, a mean over turns."""

    tool_selection_accuracy: float
    """Share of the gold's calls whose tool is called at the same place."""
    parameter_selection_accuracy: float
    """Share of the gold's calls that are made with all of the gold's arguments."""
    tool_number_accuracy: float
    """Whether as many calls are made as the gold has."""
    tool_order_accuracy: float
    """Whether the tools are called in the gold's order; always 1 where the gold has no call."""
    turn_success_rate: float
    """Whether every call is right and none is missing or too many."""
    soft_turn_success_rate: float
    """The same with weights that fall from turn to turn, by ``SOFT_DECAY``."""
    success_rate: float
    """1 if every turn succeeded, else 0."""
    task_process_rate: float
    """The reference's equals the turn success rate."""


def parse_completion(completion: str) -> tuple[str, list[ToolCall]]:
    """Thought and tool calls of what was generated after the prefilled ``<think>``.

    Calls look like ``name(key=value, other="text")`` and stand in the answer; without a well-formed
    answer the whole text is searched. Arguments without a name are ignored.
    """
    thought, content = map(strip_markup, _split(completion))
    # Behind the last bracket every unclosed call would be searched to the end.
    closed = content[: content.rfind(")") + 1]
    calls = [
        ToolCall(name=found[1], arguments=_arguments(found[2])) for found in _CALL.finditer(closed)
    ]
    return thought, calls


def parse_gold(gold: str) -> list[ToolCall]:
    """The calls of a gold such as ``{"tool": {"key": "value"}}``; ``{"": {}}`` asks for none.

    Single quotes are taken for double ones where that makes it JSON. What still is none has no
    calls, as in the reference.
    """
    for text in (gold, gold.replace("'", '"')):
        try:
            tools = json.loads(text)
            break
        except json.JSONDecodeError:
            continue
    else:
        return []
    if not isinstance(tools, dict):
        return []
    return [
        ToolCall(name=name.strip(), arguments=arguments if isinstance(arguments, dict) else {})
        for name, arguments in tools.items()
        if name.strip()
    ]


def dialogue_metrics(
    turns: Sequence[tuple[Sequence[ToolCall], Sequence[ToolCall]]],
) -> ToolCallMetrics:
    """Compare predicted with expected calls, turn by turn.

    Args:
        turns: For every turn of the dialogue, the predicted and the expected calls; at least one.

    Raises:
        ValueError: There are no turns.
    """
    if not turns:
        raise ValueError("a dialogue has at least one turn")
    rows = [_turn_scores(predicted, expected) for predicted, expected in turns]
    selection, parameters, number, order, success = zip(*rows, strict=True)
    weights = [SOFT_DECAY**index for index in range(len(rows))]
    soft = sum(w * s for w, s in zip(weights, success, strict=True)) / sum(weights)
    return ToolCallMetrics(
        tool_selection_accuracy=_mean(selection),
        parameter_selection_accuracy=_mean(parameters),
        tool_number_accuracy=_mean(number),
        tool_order_accuracy=_mean(order),
        turn_success_rate=_mean(success),
        soft_turn_success_rate=soft,
        success_rate=float(all(success)),
        task_process_rate=_mean(success),
    )


def grade_tool_calls(answer: str, gold: str) -> Verdict:
    """Correct if every expected call is made, in order and with its arguments, and no other.

    Raises:
        ValueError: The gold is no object of calls, so that nothing can be said of an answer.
    """
    expected = parse_gold(gold)
    if not expected and not gold.strip().startswith("{"):
        raise ValueError(f"the gold is no object of tool calls: {gold[:80]!r}")
    _, predicted = parse_completion(answer)
    return Verdict(
        correct=dialogue_metrics([(predicted, expected)]).success_rate == 1.0,
        valid=bool(answer.strip()),
        normalized=_plain("".join(answer.split())),
    )


def _split(completion: str) -> tuple[str, str]:
    text = completion if completion.strip().startswith("<think>") else f"<think>{completion}"
    opening = _OPENING.search(text)
    boundary = _BOUNDARY.search(text, opening.end()) if opening else None
    if opening and boundary and (end := _ANSWER_END.search(text, boundary.end())):
        return text[opening.end() : boundary.start()], text[boundary.end() : end.start()]
    answer = _ANSWER.search(text)
    if answer and (end := _ANSWER_END.search(text, answer.end())):
        return "", text[answer.end() : end.start()]
    return "", text


def _arguments(text: str) -> dict[str, str]:
    return {
        found[1]: (found[2] or found[3] or found[4] or "").strip()
        for found in _ARGUMENT.finditer(text)
    }


def _turn_scores(
    predicted: Sequence[ToolCall], expected: Sequence[ToolCall]
) -> tuple[float, float, float, float, float]:
    """Selection, parameters, number, order, success."""
    as_many = len(predicted) == len(expected)
    if not expected:
        alike = float(as_many)
        return alike, alike, alike, 1.0, alike
    # Place by place: a call too many at the front makes all that follow wrong.
    pairs = list(zip(predicted, expected, strict=False))
    tools = [_tool(a) == _tool(b) for a, b in pairs]
    whole = [same and _has_arguments(a, b) for same, (a, b) in zip(tools, pairs, strict=True)]
    return (
        sum(tools) / len(expected),
        sum(whole) / len(expected),
        float(as_many),
        float(as_many and all(tools)),
        float(as_many and all(whole)),
    )


def _tool(call: ToolCall) -> str:
    """A tool's name without case and punctuation; hyphens and spaces are underscores."""
    return re.sub(r"\W", "", re.sub(r"[_\-\s]+", "_", call.name.lower().strip()))


def _has_arguments(call: ToolCall, gold: ToolCall) -> bool:
    """Whether the gold's arguments are all there; others may be, too."""
    for name, value in gold.arguments.items():
        given = call.arguments.get(name) or call.arguments.get(name.lower())
        if given is None or _plain(given) != _plain(value):
            return False
    return True


def _plain(value: Any) -> Any:
    """Text without case and outer white space, within lists and objects too.

    The number 3 is not the text ``3``, as in the reference.
    """
    if isinstance(value, str):
        return value.strip().lower()
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key.lower(): _plain(each) for key, each in value.items()}
    return value


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
