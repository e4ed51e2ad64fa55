"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """A run may work, or not as one thinks."""
    ERROR = "error"
    """A run would fail."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    """Short name of what was looked at."""
    level: Level
    message: str
    """What was found, with figures."""
    remedy: str = ""
    """What to do about it; empty where all is well."""


def ok(check: str, message: str) -> Finding:
    """All is well."""
    return Finding(check=check, level=Level.OK, message=message)


def warning(check: str, message: str, remedy: str) -> Finding:
    """A run may work, or not as one thinks."""
    return Finding(check=check, level=Level.WARNING, message=message, remedy=remedy)


def error(check: str, message: str, remedy: str) -> Finding:
    """A run would fail."""
    return Finding(check=check, level=Level.ERROR, message=message, remedy=remedy)
