"""Units of measurement behind a value: taken off, and compared where both sides name one."""

from __future__ import annotations

import re

_NAMES = {
    "mm": "mm millimeter millimetre",
    "cm": "cm centimeter centimetre",
    "m": "m meter metre",
    "km": "km kilometer kilometre",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard",
    "mi": "mi mile",
    "ms": "ms millisecond",
    "s": "s sec second",
    "min": "min minute",
    "h": "h hr hour",
    "day": "day",
    "week": "week",
    "year": "yr year",
    "mg": "mg milligram",
    "g": "g gram",
    "kg": "kg kilogram",
    "lb": "lb pound",
    "ml": "ml milliliter millilitre",
    "l": "l liter litre",
    "dollar": "dollar usd",
    "cent": "cent",
    "degree": "degree deg",
    "radian": "radian rad",
}
_CANONICAL = {name: unit for unit, names in _NAMES.items() for name in names.split()}
_WORD = re.compile(r"[a-zA-Z]{4}")
_POWERS = {"square": "^2", "sq": "^2", "cubic": "^3"}
_AT_END = re.compile(
    r"(?:\\[ ,;]|~|\s)*(?:\\text\s*\{(?P<text>[^{}]*)\}|(?P<degree>\^\{?\\circ\}?)"
    r"|(?<=[\s\d])(?P<plain>[a-zA-Z][a-zA-Z.]*(?:[ /][a-zA-Z.]+)*))(?:\^\{?(?P<power>[23])\}?)?$"
)


def split_unit(expression: str) -> tuple[str, str | None]:
    r"""Value and unit of ``5\text{ cm}^2`` or ``12 miles``.

    Returns:
        The expression without a unit; and the unit under one name (``cm^2``), None where there is
        none or none that is known. Plain words are a unit only behind a digit, and only where
        they are known or longer than a variable: ``2x`` has none.
    """
    found = _AT_END.search(expression)
    value = expression[: found.start()].strip() if found else ""
    if not found or not value or "percent" in found[0]:
        return expression, None
    if found["degree"]:
        return value, "degree"
    unit = _canonical(found["text"] if found["plain"] is None else found["plain"], found["power"])
    if found["plain"] and (
        not value[-1].isdigit() or (unit is None and not _WORD.search(found[0]))
    ):
        return expression, None
    return value, unit


def _canonical(words: str, power: str | None) -> str | None:
    suffix = f"^{power}" if power else ""
    parts = words.lower().replace(".", "").split()
    if parts and parts[0] in _POWERS:
        suffix = _POWERS[parts.pop(0)]
    if len(parts) != 1:
        return None
    name = _CANONICAL.get(parts[0]) or _CANONICAL.get(parts[0].removesuffix("s"))
    return None if name is None else name + suffix
