"""Is an answer correct? Graders by name."""

from __future__ import annotations

from collections.abc import Callable

from drift_ray.errors import ConfigError
from drift_ray.types import Verdict

Grader = Callable[[str, str], Verdict]
"""``grade(answer, gold)``: pure, quick and safe to call from any thread or process."""


def normalize(text: str) -> str:
    """Lower-case ``text`` and remove all white space."""
    return "".join(text.lower().split())


def grade_reference(answer: str, gold: str) -> Verdict:
    """Grade by equality after :func:`normalize`, as the DRIFT reference does for MetaMathQA.

    An answer of nothing but white space is not valid and never correct, whatever the gold.
    """
    normalized = normalize(answer)
    return Verdict(
        correct=bool(normalized) and normalized == normalize(gold),
        valid=bool(normalized),
        normalized=normalized,
    )


_GRADERS: dict[str, Grader] = {"reference": grade_reference}


def get_grader(name: str) -> Grader:
    """The grader called ``name``.

    Raises:
        ConfigError: There is none of that name.
    """
    try:
        return _GRADERS[name]
    except KeyError:
        raise ConfigError(
            f"unknown grader {name!r}", hint=f"choose one of: {', '.join(sorted(_GRADERS))}"
        ) from None
