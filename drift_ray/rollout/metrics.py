"""What a sampling stage tells Prometheus; the table is in ``drift_ray/metrics.py``."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import count

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
        self._slots: dict[int, int] = {}
        """By replica: the lowest number that no other has. A label must not grow with time."""

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
        self._fill_slots(each.replica_id for each in fleet)
        for each in fleet:
            slot = str(self._slots[each.replica_id])
            exporter.set("trajectories_in_flight", each.num_in_flight, replica=slot)

    def _fill_slots(self, replica_ids: Iterable[int]) -> None:
        present = set(replica_ids)
        for gone in self._slots.keys() - present:
            slot = self._slots.pop(gone)
            self._exporter.set("trajectories_in_flight", 0, replica=str(slot))
        taken = set(self._slots.values())
        free = (slot for slot in count() if slot not in taken)
        self._slots.update(zip(sorted(present - self._slots.keys()), free, strict=False))
