"""What a text says, whatever its typography: for the graders that read values."""

from __future__ import annotations

import re

# Markdown's **bold**; not the power of 2**3 or 2 ** 3.
_BOLD = re.compile(r"(?<![\w)\]}*])\*\*(?=[^\s*])(.+?)(?<=[^\s*])\*\*(?![\w(\[{*])", re.DOTALL)
_DIGIT = re.compile(r"\d")
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))
_FRACTIONS = str.maketrans(
    {one: f" {top}/{bottom}" for one, top, bottom in ("½12", "⅓13", "⅔23", "¼14", "¾34", "⅛18")}
)


def plain(text: str) -> str:
    """``text`` without bold face and invisible characters, and with ASCII's digits.

    ``**5**``, ``５`` and ``٥`` are 5; ``1½`` is ``1 1/2``.
    """
    if "**" in text:
        text = _BOLD.sub(r"\1", text)
    if text.isascii():
        return text
    text = text.translate(_INVISIBLE).translate(_FRACTIONS)
    return _DIGIT.sub(lambda found: str(int(found[0])), text)
