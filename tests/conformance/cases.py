"""The conformance cases: the ones beside the checkout if there are any, else our copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_COPY = Path(__file__).parent
_BESIDE = _COPY.parents[2] / "shared" / "conformance"


def load(name: str) -> list[dict[str, Any]]:
    """All cases of one file, in file order."""
    folder = _BESIDE if _BESIDE.is_dir() else _COPY
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
