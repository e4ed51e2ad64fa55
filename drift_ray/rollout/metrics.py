"""What a sampling stage tells Prometheus; the table is in ``drift_ray/metrics.py``."""

from __future__ import annotations

import time

from drift_ray.metrics import Exporter
from drift_ray.rollout.fleet import Fleet, ReplicaState
from drift_ray.rollout.work import Counts

_COUNTERS = {
    "num_trajectories": "trajectories",
    "num_solved": "solved_trajectories",
    "num_failures": "failed_trajectories",
    "num_sampled_tokens": "sampled_tokens",
}


class StageMetrics:
    """Metrics of one stage.

    Args:
        run: The run directory, as it may be shown.
        stage: The stage's name.
        num_lost: Replicas that the fleet has lost before.
    """

    def __init__(self, run: str, stage: str, num_lost: int) -> None:
        self._exporter = Exporter(run=run, stage=stage)
        self._told = Counts()
        self._num_lost = num_lost
        self._groups_left: int | None = None
        self._replicas: set[str] = set()

    def set(self, counts: Counts, fleet: Fleet, *, groups_left: int, running: bool) -> None:
        """Report the present state."""
        exporter = self._exporter
        exporter.set("running", running)
        new, self._told = counts - self._told, counts
        for field, name in _COUNTERS.items():
            exporter.count(name, getattr(new, field))
        exporter.count("replicas_lost", fleet.num_lost - self._num_lost)
        self._num_lost = fleet.num_lost
        if groups_left != self._groups_left:  # also at the start, from which patience is counted
            exporter.set("last_progress_s", time.time())
        self._groups_left = groups_left
        exporter.set("groups_left", groups_left)
        exporter.set("replicas_wanted", fleet.num_wanted)
        for state in ReplicaState:
            exporter.set("replicas", len(fleet.in_state(state)), state=state.value)
        in_flight = {str(each.replica_id): each.num_in_flight for each in fleet}
        for gone in self._replicas - set(in_flight):
            exporter.set("trajectories_in_flight", 0, replica=gone)
        self._replicas = set(in_flight)
        for replica, number in in_flight.items():
            exporter.set("trajectories_in_flight", number, replica=replica)
