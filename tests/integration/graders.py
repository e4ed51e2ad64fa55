"""A grader of one's own that has bad days."""

from __future__ import annotations

import os
import threading


def moody(answer: str, gold: str) -> bool:
    """Hangs, raises or dies, as the gold decides; otherwise compares."""
    if gold.endswith("7"):
        threading.Event().wait()
    if gold.endswith("6"):
        raise ValueError(f"{gold} brings bad luck")
    if gold.endswith("1"):
        os._exit(1)
    return answer == gold
