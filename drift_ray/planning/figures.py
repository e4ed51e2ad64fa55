"""What an earlier run tells about the cost of the next: read, never guessed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from drift_ray.store import METRICS_FILE, STATUS_FILE, RunStore

_TRAINING = "training"


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Measured in a run; what is not known is None or missing."""

    tokens_per_trajectory: Mapping[str, float] = field(default_factory=dict)
    """Sampled tokens, mean, by the name of the step."""
    tokens_per_s: float | None = None
    """Of all replicas of the last sampling together."""
    step_s: float | None = None
    """Seconds of a training step, mean over the last training."""
    num_steps: int | None = None
    """Of the last training."""

    def tokens_of(self, step: str) -> float | None:
        """Tokens of a trajectory in this step; where it never ran, the mean over those that did."""
        found = self.tokens_per_trajectory
        if not found:
            return None
        return found.get(step, sum(found.values()) / len(found))


def read_figures(store: RunStore) -> Figures:
    """The figures of a run directory: those it has, so none of a new one."""
    tokens: dict[str, int] = defaultdict(int)
    trajectories: dict[str, int] = defaultdict(int)
    steps: list[Mapping[str, Any]] = []
    for record in _records(store):
        if record.get("stage") == _TRAINING:
            steps.append(record)
        elif record.get("num_trajectories"):
            tokens[record["stage"]] += record["num_sampled_tokens"]
            trajectories[record["stage"]] += record["num_trajectories"]
    last = [step for step in steps if step.get("digest") == steps[-1].get("digest")]
    status = store.read_json(STATUS_FILE) if store.exists(STATUS_FILE) else {}
    return Figures(
        tokens_per_trajectory={step: tokens[step] / trajectories[step] for step in tokens},
        tokens_per_s=status.get("tokens_per_s") or None,
        step_s=sum(step["step_s"] for step in last) / len(last) if last else None,
        num_steps=last[-1]["num_steps"] if last else None,
    )


def _records(store: RunStore) -> Iterable[Mapping[str, Any]]:
    if not store.exists(METRICS_FILE):
        return
    for line in store.fs.cat_file(store.path(METRICS_FILE)).splitlines():
        # A writer that was killed leaves half a line.
        with suppress(ValueError):
            yield json.loads(line)
