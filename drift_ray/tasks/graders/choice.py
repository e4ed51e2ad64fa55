"""Multiple choice: which letter, A to J, does an answer mean?"""

from __future__ import annotations

import re

from drift_ray.tasks.graders.reference import normalize
from drift_ray.types import Verdict

_MARKUP = re.compile(r"\\(?:boxed|fbox|text\w*|math\w+)\b|</?\w+>|[${}*`\"\\]")
# The letter and nothing else: B, (B), [b], B., "B)".
_ALONE = re.compile(r"[(\[]?([a-j])[)\]]?[.:,;!]?", re.IGNORECASE)
# The letter as a label before the option's words: "(B) Paris", "b. Paris", "B: Paris".
_LABEL = re.compile(r"(?:[(\[]([a-j])[)\]]|([a-j])[).:])\s", re.IGNORECASE)
# Said in words: "the answer is B", "Option (b)", "I choose: c." A lower-case letter must end a
# clause, so that the article of "the best choice is a dog" is none.
_SAID = re.compile(
    r"\b(?i:answer|option|choice|choose|select|pick|letter)"
    r"(?i:\s+(?:is|was|must|should|would|be|option|choice|letter))*\s*[:=]?\s*"
    r"(?:[(\[]([A-Ja-j])[)\]]|([A-J])(?![\w'’])|([a-j])(?=\s*(?:[.,;:!?)]|$)))"
)
# A capital that stands alone; neither the article "A dog" nor the pronoun "I think", nor "not B",
# "isn't (B)".
_CAPITAL = re.compile(
    r"(?<![\w'’])(?<!not )(?<!n['’]t )(?<!not [(\[])(?<!n['’]t [(\[])"
    r"(?:[B-HJ](?![\w'’])|[AI](?![\w'’]|\s+(?!or\b|and\b|is\b)[a-z]))"
)
# "A or B", "A, (B)": what follows a letter makes it one of several.
_ALTERNATIVE = re.compile(
    r"[)\]]?\s*(?:,|/|&|\bor\b|\band\b)+\s*(?:(?:option|choice)\s+)?[(\[]?[A-Ja-j](?!\w)"
)


def grade_choice(answer: str, gold: str) -> Verdict:
    """Grade by the letter that the answer means; by text where either side means none.

    Understood are the bare letter with brackets, stops or LaTeX around it, a label before the
    option's words, a letter said in words (the last one counts), and a single capital in a
    sentence. An answer that names several letters means none: hedging is not correct.
    """
    letter = find_letter(answer)
    normalized = normalize(answer) if letter is None else letter
    expected = find_letter(gold) or normalize(gold)
    return Verdict(
        correct=bool(normalized) and normalized == expected,
        valid=bool(normalized),
        normalized=normalized,
    )


def find_letter(text: str) -> str | None:
    """The letter that ``text`` means, in lower case; None if it means none or several."""
    text = _MARKUP.sub(" ", text).strip()
    if alone := _ALONE.fullmatch("".join(text.split())):
        return alone[1].lower()
    said = list(_SAID.finditer(text))
    found = said[-1] if said else _LABEL.match(text)
    if found:
        hedged = _ALTERNATIVE.match(text, found.end())
        return None if hedged else next(filter(None, found.groups())).lower()
    capitals = set(_CAPITAL.findall(text))
    return capitals.pop().lower() if len(capitals) == 1 else None
