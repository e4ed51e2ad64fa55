"""Tool calls: how they are read, and what each metric of a dialogue counts."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.tasks.tool_calls import (
    SOFT_DECAY,
    ToolCall,
    dialogue_metrics,
    grade_tool_calls,
    parse_completion,
    parse_gold,
)


def calls(text: str) -> list[ToolCall]:
    return parse_completion(text)[1]


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(name=name, arguments=arguments)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f()", [call("f")]),
        ("f(a=\"1, 2\", b='x y', c= 3 )", [call("f", a="1, 2", b="x y", c="3")]),
        ("f(1, 2)", [call("f")]),
        ("f ( a = 1 )\ng(b=2)", [call("f", a="1"), call("g", b="2")]),
        ("f(a=1, a=2)", [call("f", a="2")]),
        ("f(a='')", [call("f", a="")]),
        ("f(a=1", []),
        ("no tool", []),
        ("", []),
    ],
)
def test_calls_of_a_text(text: str, expected: list[ToolCall]) -> None:
    assert calls(text) == expected
    assert calls(f"hm f(x=1)</think><answer>{text}</answer>") == expected


def test_thoughts_are_no_calls_and_tags_may_be_in_capitals() -> None:
    assert parse_completion("f(x)</THINK> <ANSWER>g()</ANSWER>") == ("f(x)", [call("g")])
    assert parse_completion("<think>a</think>b</think><answer>g()</answer>")[0] == "ab"
    assert parse_completion("f() <answer>g()</answer>") == ("", [call("g")])


@pytest.mark.parametrize(
    ("gold", "expected"),
    [
        ('{"f": {"a": 1}}', [call("f", a=1)]),
        ("{'f': {'a': 'x'}}", [call("f", a="x")]),
        ('{"f": {}, " g ": 3}', [call("f"), call("g")]),
        ('{"": {}}', []),
        ("[1]", []),
        ("not json", []),
        ("", []),
    ],
)
def test_calls_of_a_gold(gold: str, expected: list[ToolCall]) -> None:
    assert parse_gold(gold) == expected


def test_names_and_values_compare_loosely_but_numbers_are_no_text() -> None:
    def solved(predicted: ToolCall, expected: ToolCall) -> bool:
        return dialogue_metrics([([predicted], [expected])]).success_rate == 1.0

    assert solved(call("Get-Weather", city=" BEIJING"), call("get_weather", city="Beijing"))
    assert solved(call("f", a="1", b="2"), call("f", a="1"))
    assert not solved(call("f", a="1"), call("f", a="1", b="2"))
    assert solved(call("f", city="x"), call("f", City="X"))
    assert not solved(call("f", a="3"), call("f", a=3))
    assert not solved(call("f"), call("g"))


def test_metrics_of_one_turn() -> None:
    expected = [call("f", a="1"), call("g", b="2")]
    swapped = dialogue_metrics([(expected[::-1], expected)])
    assert (swapped.tool_selection_accuracy, swapped.tool_number_accuracy) == (0.0, 1.0)
    half = dialogue_metrics([([call("f", a="1"), call("g", b="3")], expected)])
    assert half.tool_selection_accuracy == 1.0
    assert half.parameter_selection_accuracy == 0.5
    assert (half.tool_order_accuracy, half.turn_success_rate) == (1.0, 0.0)
    short = dialogue_metrics([([call("f", a="1")], expected)])
    assert (short.tool_selection_accuracy, short.tool_number_accuracy) == (0.5, 0.0)
    assert (short.tool_order_accuracy, short.success_rate) == (0.0, 0.0)
    long = dialogue_metrics([([*expected, call("h")], expected)])
    assert (long.parameter_selection_accuracy, long.turn_success_rate) == (1.0, 0.0)


def test_metrics_of_a_dialogue() -> None:
    right, wrong = ([call("f")], [call("f")]), ([call("f")], [call("g")])
    metrics = dialogue_metrics([right, wrong, right])
    assert metrics.turn_success_rate == metrics.task_process_rate == pytest.approx(2 / 3)
    weights = [1.0, SOFT_DECAY, SOFT_DECAY**2]
    assert metrics.soft_turn_success_rate == pytest.approx((1 + SOFT_DECAY**2) / sum(weights))
    assert metrics.success_rate == 0.0
    with pytest.raises(ValueError, match="at least one turn"):
        dialogue_metrics([])


@given(st.text())
def test_any_text_is_parsed(text: str) -> None:
    _, found = parse_completion(text)
    assert dialogue_metrics([(found, found)]).success_rate == 1.0
    assert dialogue_metrics([(found, parse_gold(text))]).tool_number_accuracy in (0.0, 1.0)


@pytest.mark.parametrize("unit", ["f(", "a", "a=", "<answer>", "</think>", " ", "f(a=1)", '"'])
def test_long_text_takes_no_longer_than_its_length(unit: str) -> None:
    started = time.process_time()
    parse_completion(unit * 30_000)
    assert time.process_time() - started < 2.0


@pytest.mark.parametrize(
    ("answer", "gold", "correct"),
    [
        ("book(day='Monday')", '{"book": {"day": "monday"}}', True),
        ("book(day='Monday', time=3)", '{"book": {"day": "monday"}}', True),
        ("book(day='Friday')", '{"book": {"day": "monday"}}', False),
        ("book(day='Monday'), pay()", '{"book": {"day": "monday"}}', False),
        ("I need no tool", '{"": {}}', True),
        ("", '{"book": {}}', False),
    ],
)
def test_grading_tool_calls(answer: str, gold: str, correct: bool) -> None:
    verdict = grade_tool_calls(answer, gold)
    assert verdict.correct is correct
    assert verdict.valid is bool(answer)


def test_a_gold_without_calls_is_never_graded() -> None:
    with pytest.raises(ValueError, match="no object of tool calls: 'Sure'"):
        grade_tool_calls("no tool", "Sure")
