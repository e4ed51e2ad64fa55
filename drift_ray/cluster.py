"""Ray: joining a cluster, or starting a private one on this machine."""

from __future__ import annotations

import atexit
import logging
import math
import os
import re
import secrets
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift_ray.config import RunConfig
from drift_ray.errors import ClusterError, DriftRayError, StageError
from drift_ray.joining import check_head, refuse_other_version

if TYPE_CHECKING:
    from ray.exceptions import RayTaskError

logger = logging.getLogger(__name__)

# Ray Data and Ray Train's controller need room beside replicas and trainers.
_SPARE_CPUS = 2


def prepare_ray() -> None:
    """Settle what Ray reads from the environment, before anything imports it.

    A private Ray asks for a token, since it listens beyond the loopback interface. A cluster's
    settings, and a user's own, are left alone.
    """
    # Ray lowers the priority of its workers by default, which starves them beside anything else.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Objects that outlive Ray's connection would start another Ray when they are collected.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    if "RAY_ADDRESS" in os.environ or "RAY_AUTH_MODE" in os.environ:
        return
    descriptor, path = tempfile.mkstemp(prefix="drift_ray-token-")  # readable by its owner alone
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=path)
    atexit.register(Path(path).unlink, missing_ok=True)


@contextmanager
def ray_cluster(config: RunConfig) -> Iterator[None]:
    """Be connected to Ray: the cluster of ``RAY_ADDRESS`` or of this job, else a private one.

    A private one counts as many logical CPUs as all stages want at once: they take turns, so
    replicas may stay loaded while others work. It has what nodes of a cluster are told apart by.

    Raises:
        ClusterError: The cluster named by ``RAY_ADDRESS`` cannot be joined.
        StageError: A private one does not start, or cannot be all the nodes that the settings
            tell apart.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    if address := os.environ.get("RAY_ADDRESS"):
        _join(address)
    else:
        _start(one_node(config))
    try:
        yield
    except KeyboardInterrupt as interrupt:
        # What the interrupted calls hold of Ray is collected while Ray is there.
        traceback.clear_frames(interrupt.__traceback__)
        raise
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    import ray

    check_head(address)
    try:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except Exception as error:  # Ray raises just that
        if found := re.search(r"cluster was started with:\s+Ray: (\S+)", str(error)):
            refuse_other_version(address, found[1])
        raise ClusterError(
            f"Cannot join the cluster at {address}: {error}",
            "Check RAY_ADDRESS and RAY_AUTH_MODE, or unset RAY_ADDRESS to use this machine alone.",
        ) from error


def _start(node: Mapping[str, Any]) -> None:
    import ray

    try:
        ray.init(
            address="local",
            **node,
            include_dashboard=False,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    except Exception as error:  # where its processes are slow to start, Ray raises just that
        raise StageError(
            f"Cannot start a private Ray on this machine: {error}",
            "Where the machine is busy, run the same command again; else check RAY_AUTH_MODE.",
        ) from error


def logical_cpus(config: RunConfig) -> int:
    """Logical CPUs with which everything a run may hold at once fits on one node."""
    replicas = config.replicas.num_replicas.max * config.replicas.num_cpus
    trainers = config.training.num_workers.max * config.training.num_cpus
    return math.ceil(replicas + trainers) + _SPARE_CPUS


def one_node(config: RunConfig) -> dict[str, Any]:
    """What ``ray.init`` is told so that one node is every node that the settings ask for.

    Raises:
        StageError: Replicas and trainers want different values of one label.
    """
    replicas, training = config.replicas, config.training
    resources: dict[str, float] = {}
    wishes: list[tuple[str, str]] = []
    for num, section in (
        (replicas.num_replicas.max, replicas),
        (training.num_workers.max, training),
    ):
        for name, amount in section.resources.items():
            resources[name] = resources.get(name, 0.0) + num * amount
        wishes += section.label_selector.items()
    labels = _labels_for(wishes)
    return {"num_cpus": logical_cpus(config), "resources": resources, "labels": labels}


def _labels_for(wishes: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Labels of a node that all label selectors take, as far as one node can have them."""
    labels: dict[str, str] = {}
    # One value first, then what may be one of several.
    for key, value in sorted(wishes, key=lambda wish: wish[1].startswith("in(")):
        # Ray gives labels of its own; those that a node must not have, it has not.
        if key.startswith("ray.io/") or value.startswith("!"):
            continue
        options = value.removeprefix("in(").removesuffix(")").split(",")
        values = [option.strip() for option in options]
        if labels.setdefault(key, values[0]) not in values:
            raise StageError(
                f"This machine alone cannot be a node with {key}={labels[key]} and one with "
                f"{key}={value}, which replicas and training ask for.",
                "Join a cluster by RAY_ADDRESS, or use two labels that one node can have.",
            )
    return labels


def placed_apart(config: RunConfig) -> bool:
    """Whether replicas and trainers go to nodes of their own, in a cluster that was joined."""
    wishes = [
        {*section.resources.items(), *section.label_selector.items()}
        for section in (config.replicas, config.training)
    ]
    return "RAY_ADDRESS" in os.environ and all(wishes) and wishes[0].isdisjoint(wishes[1])


def replicas_can_stay(config: RunConfig) -> bool:
    """Whether the cluster can train while the replicas stay loaded for the evaluation."""
    import ray

    total = ray.cluster_resources()
    replicas, training = config.replicas, config.training
    num_gpus = (
        replicas.num_replicas.max * replicas.num_gpus + training.num_workers.max * training.num_gpus
    )
    return total.get("CPU", 0) >= logical_cpus(config) and total.get("GPU", 0) >= num_gpus


def warn_if_too_large(what: str, num: int, resources: Mapping[str, float]) -> None:
    """Ray waits for resources without end, since a cluster may grow: say what it waits for."""
    import ray

    total = ray.cluster_resources()
    for name, amount in resources.items():
        if amount * num > total.get(name, 0):
            logger.warning(
                "%s: %d x %g %s are wanted, the cluster has %g. Ray waits until it grows.",
                what,
                num,
                amount,
                name,
                total.get(name, 0),
            )


def task_failure(error: RayTaskError, what: str) -> DriftRayError:
    """The error to show for a failed task or actor call: the task's own, if it is one of ours."""
    if isinstance(error.cause, DriftRayError):
        return error.cause
    return StageError(
        f"{what} failed in a Ray worker: {type(error.cause).__name__}: {error.cause}",
        "The log of that worker in Ray's session folder has the traceback.",
    )
