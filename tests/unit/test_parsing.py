"""Reading answers out of assistant messages."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.tasks.parsing import parse_response, prefill

PIECES = ["<think>", "</think>", "<answer>", "</answer>", "||", "12", " ", "\n", "x", "<|im_end|>"]
messages = st.lists(st.sampled_from(PIECES), max_size=15).map("".join)


def test_prefill_names_the_opening_tag() -> None:
    assert prefill(True) == "<think>"
    assert prefill(False) == "<answer>"


@pytest.mark.parametrize(
    ("text", "think", "canonical", "answers"),
    [
        ("<think> a </think>\n<answer> 5 </answer> bye", True, "<think>a</think><answer>5</answer>",
         ("5",)),
        ("<answer>5</answer>", True, "<answer>5</answer>", ()),  # thoughts were asked for
        ("<answer>5", False, "<answer>5", ()),
        ("<answer>1||2||3</answer>", False, "<answer>1 || 2</answer>", ("1", "2")),
        ("<answer>||</answer>", False, "<answer>||</answer>", ()),
        ("no opening tag", False, "no opening tag", ()),
    ],
)  # fmt: skip
def test_examples(text: str, think: bool, canonical: str, answers: tuple[str, ...]) -> None:
    parsed = parse_response(text, think=think, max_actions_per_turn=2)
    assert parsed.canonical_text == canonical
    assert parsed.answers == answers
    assert parsed.format_ok is bool(answers)


@given(messages, st.booleans(), st.integers(0, 3))
def test_canonical_text_means_the_same(text: str, think: bool, limit: int) -> None:
    parsed = parse_response(prefill(think) + text, think=think, max_actions_per_turn=limit)
    again = parse_response(parsed.canonical_text, think=think, max_actions_per_turn=limit)
    assert again == parsed


@given(messages, st.booleans(), st.integers(1, 3))
def test_a_limit_only_cuts(text: str, think: bool, limit: int) -> None:
    message = prefill(think) + text
    everything = parse_response(message, think=think, max_actions_per_turn=0).answers
    assert (
        parse_response(message, think=think, max_actions_per_turn=limit).answers
        == (everything[:limit])
    )
    assert all(answer and answer == answer.strip() for answer in everything)


@pytest.mark.parametrize(
    "piece",
    ["<think>", "</think>", "</think><answer>", "<think></think><answer>", "</think> ", " ", "<"],
)
@pytest.mark.parametrize("think", [True, False])
def test_time_is_linear_in_the_text(piece: str, think: bool) -> None:
    # A backtracking pattern needs minutes for the worst of these.
    text = prefill(think) + piece * 100_000
    begin = time.perf_counter()
    parse_response(text, think=think, max_actions_per_turn=1)
    assert time.perf_counter() - begin < 2.0
