"""Reading answers out of an assistant message.

The policy is asked for ``<think> … </think> <answer> … </answer>``, or only for the answer with
thinking off. Every search below goes forward once, so the time is linear in the text even for
text made of nothing but tags (a backtracking pattern over the whole message would be quadratic).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ANSWER_SEPARATOR = "||"

_THINK, _ANSWER, _ANSWER_END = "<think>", "<answer>", "</answer>"
_THINK_TO_ANSWER = re.compile(r"</think>\s*<answer>")
# Taken out of a part one after the other, in this order, as the DRIFT reference does.
_MARKUP = (_THINK, "</think>", _ANSWER, _ANSWER_END, "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedResponse:
    """What an assistant message says."""

    canonical_text: str
    """Tags around stripped parts if the message parsed, else the text as it was generated."""
    answers: tuple[str, ...]
    """Non-empty, stripped, in order; at most ``max_actions_per_turn``."""
    format_ok: bool
    """Whether there is an answer at all; a well-tagged but empty one does not count."""


def prefill(think: bool) -> str:
    """The opening tag that ends the generation prompt and begins the assistant message."""
    return _THINK if think else _ANSWER


def parse_response(text: str, *, think: bool, max_actions_per_turn: int) -> ParsedResponse:
    """Find the first well-formed answer of an assistant message.

    Several answers stand between the tags separated by ``||``. Tags and chat markers inside a part
    are removed from it: with thinking off, ``<answer>so</think>12</answer>`` answers ``so12``.

    Args:
        text: The whole message: the prefill and what was generated after it.
        think: Whether the message must open with its thoughts.
        max_actions_per_turn: Answers kept of one message; 0 = no limit.
    """
    parts = _split(text, think)
    if parts is None:
        return ParsedResponse(canonical_text=text, answers=(), format_ok=False)
    thought, content = (strip_markup(part) for part in parts)
    answers = tuple(a for part in content.split(ANSWER_SEPARATOR) if (a := part.strip()))
    if 0 < max_actions_per_turn < len(answers):
        answers = answers[:max_actions_per_turn]
        content = f" {ANSWER_SEPARATOR} ".join(answers)
    canonical = f"{_ANSWER}{content}{_ANSWER_END}"
    if think:
        canonical = f"{_THINK}{thought}</think>{canonical}"
    return ParsedResponse(canonical_text=canonical, answers=answers, format_ok=bool(answers))


def _split(text: str, think: bool) -> tuple[str, str] | None:
    """Thought and answer of the first match, None without one.

    Greedy choices are safe: if any later opening matched, the first one would match too.
    """
    opening = prefill(think)
    start = text.find(opening)
    if start < 0:
        return None
    thought_start = thought_end = answer_start = start + len(opening)
    if think:
        boundary = _THINK_TO_ANSWER.search(text, thought_start)
        if boundary is None:
            return None
        thought_end, answer_start = boundary.span()
    answer_end = text.find(_ANSWER_END, answer_start)
    if answer_end < 0:
        return None
    return text[thought_start:thought_end], text[answer_start:answer_end]


def strip_markup(part: str) -> str:
    """Take tags and chat markers out of a part of a message, and white space off its ends."""
    for markup in _MARKUP:
        part = part.replace(markup, "")
    return part.strip()
