"""Ray's own metrics of a sampling stage, for Prometheus and whatever reads it."""

from __future__ import annotations

from typing import TypeVar

from ray.util.metrics import Counter, Gauge

from drift_ray.rollout.fleet import Fleet, ReplicaState
from drift_ray.rollout.work import Counts

_Metric = TypeVar("_Metric", Counter, Gauge)


class StageMetrics:
    """Counters and gauges of one stage; the stage's name is a tag of each.

    Args:
        stage: Its name.
    """

    def __init__(self, stage: str) -> None:
        self._told = Counts()
        self._counters = {
            field: _tagged(Counter(f"drift_ray_{name}", text, ("stage",)), stage)
            for field, name, text in (
                ("num_trajectories", "trajectories", "Trajectories that were completed."),
                ("num_solved", "solved_trajectories", "Trajectories with a correct answer."),
                ("num_failures", "failed_trajectories", "Trajectories that failed for good."),
                ("num_sampled_tokens", "sampled_tokens", "Tokens sampled by the replicas."),
            )
        }
        self._groups_left = _tagged(
            Gauge("drift_ray_groups_left", "Groups not finished yet.", ("stage",)), stage
        )
        self._in_flight = _tagged(
            Gauge("drift_ray_trajectories_in_flight", "Trajectories under way.", ("stage",)), stage
        )
        self._replicas = _tagged(
            Gauge("drift_ray_replicas", "Replicas by state.", ("stage", "state")), stage
        )

    def set(self, counts: Counts, fleet: Fleet, *, groups_left: int) -> None:
        """Report the present state."""
        new = counts - self._told
        self._told = counts
        for field, counter in self._counters.items():
            if (amount := getattr(new, field)) > 0:
                counter.inc(amount)
        self._groups_left.set(groups_left)
        self._in_flight.set(sum(each.num_in_flight for each in fleet))
        for state in ReplicaState:
            self._replicas.set(len(fleet.in_state(state)), {"state": state.value})


def _tagged(metric: _Metric, stage: str) -> _Metric:
    metric.set_default_tags({"stage": stage})
    return metric
