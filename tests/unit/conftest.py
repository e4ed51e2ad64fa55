"""What several unit tests share."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def nano_tokenizer() -> Any:
    from drift_ray.nano.tokenizer import build_tokenizer

    return build_tokenizer()
