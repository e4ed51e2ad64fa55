"""What every test stands on: an environment of its own, no network, no foreign Ray."""

from __future__ import annotations

import gc
import os
import secrets
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

GPU_TESTS = Path(__file__).parent / "gpu"

_token_folder = tempfile.TemporaryDirectory(prefix="drift-ray-token-")
_token = Path(_token_folder.name) / "token"
_token.touch(mode=0o600)
_token.write_text(secrets.token_hex(32))

# Ray reads its environment on import, so this stands before any test module. Ray listens beyond the
# loopback interface: tests ask for a token too, one that lasts as long as they do.
os.environ.update(
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN_PATH=str(_token),
    RAY_USAGE_STATS_ENABLED="0",
    RAY_worker_niceness="0",
    # Ray Train's controller looks at its workers every 2 s, and ends or restarts them no sooner.
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    VLLM_NO_USAGE_STATS="1",
)
for _name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(_name, None)

# Time limits per example only measure how busy the machine is. Every run draws other examples, so
# many short runs see as much as the long one of `pytest --hypothesis-profile=thorough`.
settings.register_profile(
    "drift_ray",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
    max_examples=30,
)
settings.register_profile("thorough", settings.get_profile("drift_ray"), max_examples=1000)
settings.load_profile("drift_ray")


# What modules are made of stays to the end. PyTorch, SymPy and their like are millions of objects,
# which every full collection would look at again.
gc.disable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Collect garbage from here on, and look at nothing that was there before."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the token."""
    _token_folder.cleanup()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip ``tests/gpu`` where there is no GPU; torch is only asked when such a test is chosen."""
    chosen = [item for item in items if item.path.is_relative_to(GPU_TESTS)]
    if not chosen:
        return
    import torch

    if not torch.cuda.is_available():
        for item in chosen:
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))
