"""The graders of the DRIFT reference, one rule for each kind of benchmark.

They compare text, letters or first numbers, and nothing else: ``1/2`` is not ``0.5``. Use them to
compare with published figures, and ``math``, ``numeric`` or ``choice`` to train.
"""

from __future__ import annotations

import re
import string
from typing import assert_never

from drift_ray.grader_config import Benchmark
from drift_ray.types import Grader, Verdict

_LETTER = re.compile(r"\b[a-j]\b", re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower-case ``text`` and remove all white space."""
    return "".join(text.lower().split())


def reference_grader(benchmark: Benchmark) -> Grader:
    """The rule that the reference applies to a benchmark."""
    match benchmark:
        case "metamathqa" | "gsm8k" | "math500" | "hendrycks_math":
            return grade_reference
        case "gpqa" | "mmlu" | "mmlu-redux" | "mmlu_pro":
            return grade_reference_choice
        case "theoremqa":
            return grade_reference_theoremqa
    assert_never(benchmark)


def grade_reference(answer: str, gold: str) -> Verdict:
    """Grade by equality after :func:`normalize`.

    An answer of nothing but white space is not valid and never correct, whatever the gold.
    """
    return _compare(normalize(answer), normalize(gold))


def grade_reference_choice(answer: str, gold: str) -> Verdict:
    """Grade by the last stand-alone letter A to J; by text where either side has none.

    Any such letter counts, an English article or pronoun too: "I think C" is C, "a dog" is A.
    """
    return _compare(_last_letter(answer), _last_letter(gold))


def grade_reference_theoremqa(answer: str, gold: str) -> Verdict:
    """Grade by the first number without its sign, else by text without punctuation.

    Valid is only an answer with a number in it; the text may be correct all the same, the
    empty one included.
    """
    number, expected = _first_number(answer), _first_number(gold)
    text = _words(answer)
    return Verdict(
        correct=(number is not None and number == expected) or text == _words(gold),
        valid=number is not None,
        normalized=text if number is None else _plain(number),
    )


def _compare(normalized: str, gold: str) -> Verdict:
    return Verdict(
        correct=bool(normalized) and normalized == gold,
        valid=bool(normalized),
        normalized=normalized,
    )


def _last_letter(text: str) -> str:
    letters = _LETTER.findall(text)
    return letters[-1].lower() if letters else normalize(text)


def _first_number(text: str) -> float | None:
    found = _NUMBER.search(text)
    return None if found is None else float(found.group())


def _plain(number: float) -> str:
    """Whole numbers without a decimal point, others as Python writes them."""
    return str(int(number)) if number.is_integer() else str(number)


def _words(text: str) -> str:
    return normalize(text).translate(_NO_PUNCTUATION)
