"""Rows of named benchmarks to question and gold, exactly as the DRIFT reference converts them.

Every function takes a row's fields and returns the question and the gold, either of them empty
where the row has none. Fields that are null count as missing.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Fields = Mapping[str, Any]
Pair = tuple[str, str]
"""Question and gold."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_LETTER = re.compile(r"\b[A-J]\b")
_FINAL = "The answer is: "
_MARK = "####"


def metamathqa(row: Fields) -> Pair:
    """The response's text behind "The answer is: "."""
    _, marker, gold = plain(row.get("response")).partition(_FINAL)
    return plain(row.get("query")), gold.strip() if marker else ""


def problem_and_solution(row: Fields) -> Pair:
    """MATH and what is like it: the answer field, else the solution's last box or last line."""
    return plain(row.get("problem")), _worked_answer(row)


def gsm8k(row: Fields) -> Pair:
    """What stands behind the last ``####``."""
    return plain(row.get("question")), _worked_answer(row)


def theoremqa(row: Fields) -> Pair:
    """Of an answer with several values, the first; a picture leaves ``<image>`` behind."""
    question = plain(first_of(row, "Question", "question"))
    if first_of(row, "Picture", "picture") not in (None, "", "None"):
        question = f"<image>\n{question}".strip()
    return question, _theorem_answer(first_of(row, "Answer", "answer"))


def four_choices(row: Fields) -> Pair:
    """MMLU and MMLU-Redux: the answer is an index from 0 to 3, or a letter."""
    return _with_options(plain(row.get("question")), _listed(row.get("choices"))), _letter(row, 4)


def ten_choices(row: Fields) -> Pair:
    """MMLU-Pro: up to ten options."""
    options = _listed(first_of(row, "options", "choices"))
    return _with_options(plain(row.get("question")), options), _letter(row, 10)


def gpqa(row: Fields) -> Pair:
    """Options in an order that the row itself decides, the same wherever it is read."""
    question = plain(first_of(row, "Question", "question"))
    options, correct = _gpqa_options(row)
    kept = [index for index, option in enumerate(options) if option.strip()]
    if not kept:
        return question, ""
    key = row.get("id") or row.get("uid") or row.get("question") or question
    digest = hashlib.md5(str(key).encode(), usedforsecurity=False).digest()
    random.Random(int.from_bytes(digest[:4])).shuffle(kept)
    text = _with_options(question, [options[index].strip() for index in kept])
    return text, _nth_letter(kept.index(correct)) if correct in kept else ""


def plain(value: Any) -> str:
    """A field as stripped text; null is no text."""
    return "" if value is None else str(value).strip()


def first_of(row: Fields, *names: str) -> Any:
    """The value of the first of these fields that the row has."""
    return next((row[name] for name in names if name in row), None)


def behind_mark(text: str) -> str:
    """What stands behind the last ``####``; all of it without one."""
    return text.rpartition(_MARK)[2].strip()


def boxed(text: str) -> str:
    r"""The content of the last ``\boxed{…}`` or ``\fbox{…}``; empty where none is closed."""
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return ""
    start, depth = boxes[-1].end(), 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return text[start : start + brace.start()].strip()
    return ""


def behind_final(text: str) -> str:
    """What stands behind "The answer is: "; all of it without one."""
    _, marker, answer = text.partition(_FINAL)
    return answer.strip() if marker else text


def _worked_answer(row: Fields) -> str:
    answer = behind_mark(plain(row.get("answer"))) if row.get("answer") else ""
    if answer:
        return boxed(answer) or answer
    solution = str(row.get("solution") or "")
    if box := boxed(solution):
        return box
    if marked := re.findall(rf"{_MARK}\s*(.+)", solution):
        return marked[-1].strip()
    lines = [line.strip() for line in solution.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _theorem_answer(answer: Any) -> str:
    if isinstance(answer, list | tuple):
        return _first_text(answer)
    if isinstance(answer, dict):
        named = [answer[name] for name in ("answer", "value", "text") if name in answer]
        return _first_text(named) or plain(answer)
    text = plain(answer)
    return behind_mark(text) or text


def _first_text(values: Iterable[Any]) -> str:
    return next(filter(None, map(plain, values)), "")


def _listed(options: Any) -> list[str]:
    if options is None:
        return []
    return list(map(str, options)) if isinstance(options, list | tuple) else [str(options)]


def _with_options(question: str, options: Sequence[str]) -> str:
    lines = [f"{_nth_letter(index)}. {option}" for index, option in enumerate(options)]
    return "\n".join([question, *lines]).strip()


def _nth_letter(index: int) -> str:
    return chr(ord("A") + index)


def _index(answer: Any) -> int | None:
    """The place of an option that a letter or a number names."""
    if isinstance(answer, str) and (letter := _LETTER.search(answer.strip().upper())):
        return ord(letter[0]) - ord("A")
    try:
        return int(answer)
    except (TypeError, ValueError):
        return None


def _letter(row: Fields, most: int) -> str:
    answer = first_of(row, "answer", "answer_index")
    index = _index(answer)
    named = isinstance(answer, str) and _LETTER.search(answer.strip().upper())
    # A letter stands for itself; only a number is held against the number of options.
    return _nth_letter(index) if index is not None and (named or 0 <= index < most) else ""


def _gpqa_options(row: Fields) -> tuple[list[str], int | None]:
    """All options, blank ones included, and which is correct."""
    right = first_of(row, "Correct Answer", "correct_answer")
    choices = first_of(row, "choices", "options")
    if isinstance(choices, dict):
        choices = choices.get("text") or choices.get("choices") or choices.get("options")
    if choices is None:
        wrong = _listed(first_of(row, "Incorrect Answers", "incorrect_answers"))
        if not wrong:
            names = [
                f"{name} {k}".replace(" ", gap)
                for name, gap in (("Incorrect Answer", " "), ("incorrect answer", "_"))
                for k in (1, 2, 3)
            ]
            wrong = [str(row[name]) for name in names if row.get(name)]
        return ([], None) if right is None else ([str(right), *wrong], 0)
    options = _listed(choices)
    index = _index(first_of(row, "answer", "answer_index"))
    if index is None and right is not None:
        same = (k for k, each in enumerate(options) if each.strip() == plain(right))
        index = next(same, None)
    return options, index
