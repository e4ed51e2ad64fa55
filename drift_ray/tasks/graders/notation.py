"""How answers write mathematics: from a message to one expression in plain LaTeX."""

from __future__ import annotations

import re

from drift_ray.tasks.graders.typography import plain

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_SEGMENT = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\$(.+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL
)
_DELIMITER = re.compile(r"\\?\$|\\[()\[\]]")
_VALUE = re.compile(r"\d|\\|\$")
_INTRODUCTION = re.compile(
    r"^(?:.*\b(?:answer|result|solution|value)s?\b[^=:$]*?(?:\bis\b|\bare\b|\bequals?\b|[=:])"
    r"|[a-z][a-z ]{2,}[=:])\s*",
    re.IGNORECASE | re.DOTALL,
)
_TRANSLATION = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "×": r"\times ",
        "·": r"\cdot ",
        "÷": "/",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "∞": r"\infty ",
        "π": r"\pi ",
        "θ": r"\theta ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∅": r"\emptyset ",
        "±": r"\pm ",
        "°": r"^\circ",
        "²": "^2",
        "³": "^3",
    }
)
_FUNCTIONS = "(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|log|ln|exp"
_DECIMAL = r"[-+]?\d+(?:\.\d+)?"
_SYNONYMS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\displaystyle|\\!|\\limits"), ""),
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"\\(?:mbox|textrm|textbf|textit|mathrm|mathbf)\b"), r"\\text"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"<="), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"!="), r"\\ne "),
    (re.compile(r"(?<![\\a-zA-Z])(?:infinity|infty|inf|oo)(?![a-zA-Z])"), r"\\infty "),
    (re.compile(r"(?<![\\a-zA-Z])(pi|theta)(?![a-zA-Z])"), r"\\\1 "),
    (re.compile(rf"(?<![\\a-zA-Z])({_FUNCTIONS})(?![a-zA-Z])"), r"\\\1 "),
    # math-verify reads 2(3) as a mixed number, 5.
    (re.compile(rf"(?<![\w^.}}])({_DECIMAL}|\({_DECIMAL}\))\s*(?=\({_DECIMAL}\))"), r"\1\\cdot "),
    (re.compile(r"√\s*(\d+|[a-zA-Z])"), r"\\sqrt{\1}"),
    (re.compile(r"(?:\\|(?<![a-zA-Z]))sqrt\s*\(([^()]*)\)|√\s*\(([^()]*)\)"), r"\\sqrt{\1\2}"),
)
# Left to right, as it is meant: 3/4 π is not 3/(4π).
_SLASH = re.compile(r"(?<![\w.^/}])(\d+)/(\d+)(?![\d./]|\s*[!^])")
_REPEATING = re.compile(r"(?<!\d)(\d*)\.(\d*)\\overline\{?(\d+)\}?")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_ASSIGNMENT = re.compile(r"([a-zA-Z])\s*=(?!.*[=<>,]|.*\\(?:le|ge|ne|text|in)\b)\s*", re.DOTALL)
_NAMED = re.compile(r"\\(?:begin|end|operatorname)\*?\{[a-zA-Z]+\*?\}")
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{4,}")


def expression_of(text: str) -> str:
    """The expression that an answer consists of, in the notation of LaTeX, as far as it goes.

    Taken off are bold face, a box, dollar signs of either meaning, a full stop and an introduction
    ("The answer is"); plain spellings (``sqrt(2)``, ``pi``, ``<=``, ``x²``) become LaTeX, repeating
    decimals fractions.
    """
    text = _unbox(plain(text).strip())
    segment = _SEGMENT.search(text)
    # Formulas in a sentence: the only one is the answer, unless the sentence has numbers, too.
    if segment and not _VALUE.search(_SEGMENT.sub("", text, count=1)):
        text = next(filter(None, segment.groups()))
    text = _DELIMITER.sub("", _INTRODUCTION.sub("", text)).translate(_TRANSLATION)
    for pattern, replacement in _SYNONYMS:
        text = pattern.sub(replacement, text)
    text = _REPEATING.sub(_repeating_fraction, text)
    text = _SLASH.sub(r"\\frac{\1}{\2}", text)
    return text.strip().rstrip(".,;").strip()


def compact(expression: str) -> str:
    r"""The text by which two expressions count as written alike: no white space, no wrapping.

    Case is lost but for the commands of LaTeX: ``\Delta`` is not ``\delta``.
    """
    text = "".join(_TEXT.sub(r"\1", expression).split())
    return text if "\\" in text else text.lower()


def is_words(expression: str) -> bool:
    """Whether it is language, which must not be read as a product of letters."""
    return bool(_WORD.search(_NAMED.sub(" ", _TEXT.sub(r" \1 ", expression))))


def without_assignment(answer: str, gold: str) -> tuple[str, str]:
    """Both without ``x =``, where one side names the variable or both name the same."""
    said, expected = _ASSIGNMENT.match(answer), _ASSIGNMENT.match(gold)
    if said and expected and said[1] != expected[1]:
        return answer, gold
    if (said or "=" not in answer) and (expected or "=" not in gold):
        return answer[said.end() if said else 0 :], gold[expected.end() if expected else 0 :]
    return answer, gold


def _unbox(text: str) -> str:
    """What stands in the last box; the text itself without one that closes."""
    boxes = list(_BOXED.finditer(text))
    if not boxes:
        return text
    start, depth = boxes[-1].end(), 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position].strip()
    return text


def _repeating_fraction(found: re.Match[str]) -> str:
    whole, fixed, repeating = found.groups()
    shift = 10 ** len(fixed)
    nines = 10 ** len(repeating) - 1
    top = int(f"{whole or 0}{fixed}" or 0) * nines + int(repeating)
    return rf"\frac{{{top}}}{{{shift * nines}}}"
