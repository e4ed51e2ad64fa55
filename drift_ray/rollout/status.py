"""The files through which a running stage and commands elsewhere talk.

``status.json`` says how the stage goes; ``scale.json`` asks it for another number of replicas, and
is taken away when it has been heard.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from drift_ray.errors import DataError, StageError
from drift_ray.store import SCALE_FILE, STATUS_FILE, RunStore

SILENT_AFTER_S = 60.0
"""A running stage writes its status more often than this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaStatus:
    """One replica."""

    replica_id: int
    state: str
    node: str | None
    pid: int | None
    num_in_flight: int
    num_trajectories: int
    num_sampled_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StageStatus:
    """How a sampling stage goes."""

    state: str
    """``running``, ``done``, or ``stopped: `` and why."""
    stage: str
    driver: str
    """Host and process id."""
    began_s: float
    time_s: float
    """When this was written, in seconds since 1970."""
    num_done: int
    """Trajectories, those of earlier attempts included."""
    num_total: int
    num_solved: int
    """Of the trajectories of this attempt."""
    num_failures: int
    tokens_per_s: float
    time_left_s: float | None
    """None before anything can be said."""
    num_replicas_wanted: int
    replicas: list[ReplicaStatus]

    @property
    def is_running(self) -> bool:
        """Whether the stage was at work when this was written."""
        return self.state == "running"

    @property
    def is_alive(self) -> bool:
        """Whether the stage is probably still at work."""
        return self.is_running and self.silent_s() <= SILENT_AFTER_S

    def silent_s(self) -> float:
        """Seconds since this was written."""
        return max(0.0, time.time() - self.time_s)


def write_status(store: RunStore, status: StageStatus) -> None:
    """Replace the status file."""
    store.write_json(STATUS_FILE, asdict(status))


def read_status(store: RunStore) -> StageStatus:
    """The last status that a stage of this run wrote.

    Raises:
        StageError: There is none: nothing was sampled here yet.
        DataError: The file is damaged.
    """
    if not store.exists(STATUS_FILE):
        raise StageError(
            f"{store} has no {STATUS_FILE}: nothing was sampled there yet.",
            "Check the run directory, or start with `drift-ray rollout`.",
        )
    raw: Any = store.read_json(STATUS_FILE)
    try:
        replicas = [ReplicaStatus(**replica) for replica in raw["replicas"]]
        return StageStatus(**{**raw, "replicas": replicas})
    except (TypeError, KeyError) as error:
        raise DataError(
            f"{store.path(STATUS_FILE)} is not a status of this version: {error}.",
            "Delete it: a running stage writes it anew.",
        ) from None


def ask_to_scale(store: RunStore, num_replicas: int) -> None:
    """Ask the running stage for another number of replicas.

    Raises:
        StageError: No stage is running.
    """
    status = read_status(store)
    if not status.is_alive:
        raise StageError(
            f"Nothing is sampling in {store} (last seen {status.silent_s():.0f} s ago: "
            f"{status.state}).",
            "Start the stage, or set replicas.num_replicas in its configuration.",
        )
    store.write_json(SCALE_FILE, {"num_replicas": num_replicas, "time_s": time.time()})


def take_scale(store: RunStore, *, since_s: float) -> int | None:
    """The number of replicas that somebody asked for since the last call, if anybody did.

    Args:
        store: The run directory.
        since_s: Older wishes were for replicas that are gone; in seconds since 1970.
    """
    if not store.exists(SCALE_FILE):
        return None
    wish = store.read_json(SCALE_FILE, "Ask again with `drift-ray scale`.")
    store.remove(SCALE_FILE)
    if not isinstance(wish, dict) or wish.get("time_s", 0) < since_s:
        return None
    number = wish.get("num_replicas")
    return number if isinstance(number, int) and number >= 1 else None
