"""The conformance cases: the ones beside the checkout if there are any, else our copy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

_COPY = Path(__file__).parent
_BESIDE = _COPY.parents[2] / "shared" / "conformance"


def load(name: str) -> list[dict[str, Any]]:
    """All cases of one file, in file order."""
    folder = _BESIDE if _BESIDE.is_dir() else _COPY
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def check_all(name: str, check: Callable[[dict[str, Any]], None]) -> None:
    """Check all cases of one file in one test: a test each takes longer than what it checks.

    Raises:
        AssertionError: Some cases are not met; names all of them.
    """
    cases, failures = load(name), []
    for number, case in enumerate(cases, start=1):
        try:
            check(case)
        except Exception as error:
            failures.append(f"{name}.jsonl:{number}: {type(error).__name__}: {error}")
    assert cases
    assert not failures, "\n".join([f"{len(failures)} of {len(cases)} cases:", *failures])
