"""The Ray head that the environment names, if it names one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from drift_ray.cluster import prepare_ray, ray_cluster
from drift_ray.config import RunConfig
from drift_ray.doctor.findings import Finding, error, ok, warning

_TIMEOUT_S = 5.0
_CHECK = "ray"


def check_ray(config: RunConfig) -> Iterator[Finding]:
    """Reach the head, join the cluster with its authentication, and see what it has.

    Raises:
        StageError: The cluster refuses.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        yield ok(_CHECK, "RAY_ADDRESS is not set: a run starts a private Ray on this machine")
        return
    problems = [each for each in (unreachable(address), token_problem()) if each]
    yield from problems
    if not problems:
        prepare_ray()
        with ray_cluster(config):
            import ray

            yield from resource_findings(config, ray.cluster_resources())


def unreachable(address: str) -> Finding | None:
    """What is wrong with an address of a head, if no one listens there."""
    if address in ("auto", "local"):
        return None
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    remedy = "Set RAY_ADDRESS to HOST:PORT of the head (6379 by default), or unset it."
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port is None:
        return error(_CHECK, f"RAY_ADDRESS {address!r} is no HOST:PORT.", remedy)
    try:
        socket.create_connection((host, port), timeout=_TIMEOUT_S).close()
    except OSError as reason:
        return error(_CHECK, f"No Ray head answers at {address}: {reason}.", remedy)
    return None


def token_problem() -> Finding | None:
    """What is wrong with the settings of Ray's authentication."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_MODE") != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return None
    file = Path(path) if path else Path.home() / ".ray" / "auth_token"
    try:
        text = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as reason:
        text, why = "", str(reason)
    else:
        why = f"{file} is empty"
    if text:
        return None
    return error(
        _CHECK,
        f"RAY_AUTH_MODE is token, but there is no token to show: {why}.",
        "Copy the head's token: set RAY_AUTH_TOKEN_PATH to its file.",
    )


def resource_findings(config: RunConfig, total: dict[str, float]) -> Iterator[Finding]:
    """Whether a cluster with these resources has room for the least that the settings need."""
    shown = ", ".join(f"{total.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
    yield ok(_CHECK, f"joined {os.environ.get('RAY_ADDRESS')}: {shown}")
    for setting, section, num in (
        ("replicas", config.replicas, config.replicas.num_replicas.min),
        ("training", config.training, config.training.num_workers.min),
    ):
        each = {"CPU": section.num_cpus, "GPU": section.num_gpus, **section.resources}
        for name, amount in each.items():
            if amount * num > total.get(name, 0):
                yield warning(
                    _CHECK,
                    f"{setting} need {num} x {amount:g} {name}, the cluster has "
                    f"{total.get(name, 0):g} now.",
                    "All is well if it grows on demand; else lower the setting or add nodes.",
                )
