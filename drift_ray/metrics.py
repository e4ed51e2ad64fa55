"""Every metric that Prometheus can read of a run, and what writes them.

Ray exports them from every node and puts ``ray_`` before their names and, in Prometheus's habit,
``_total`` after those of counters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

_PREFIX = "drift_ray_"
_TAGS = ("run", "stage")


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric; ``run`` (the run directory) and ``stage`` are tags of each."""

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    text: str
    """What it says, in ASCII, since Ray takes nothing else."""
    tags: tuple[str, ...] = ()
    """Besides ``run`` and ``stage``."""

    @property
    def exported_name(self) -> str:
        """As Prometheus shows it."""
        return f"ray_{_PREFIX}{self.name}" + ("_total" if self.kind == "counter" else "")


def _counter(name: str, unit: str, text: str) -> Metric:
    return Metric(name=name, kind="counter", unit=unit, text=text)


def _gauge(name: str, unit: str, text: str, *tags: str) -> Metric:
    return Metric(name=name, kind="gauge", unit=unit, text=text, tags=tags)


METRICS = {
    metric.name: metric
    for metric in (
        _gauge("running", "0 or 1", "Whether the stage is at work."),
        _gauge(
            "last_progress_s", "seconds since 1970", "When a group or a step was last finished."
        ),
        # Rollouts and evaluation, by the driver.
        _counter("trajectories", "trajectories", "Completed."),
        _counter("solved_trajectories", "trajectories", "Completed with a correct answer."),
        _counter("failed_trajectories", "trajectories", "Failed for good."),
        _counter("sampled_tokens", "tokens", "Sampled by the replicas."),
        _counter("replicas_lost", "replicas", "Died or were preempted, and were replaced."),
        _gauge("groups_left", "groups", "Not finished yet."),
        _gauge("trajectories_in_flight", "trajectories", "Under way.", "replica"),
        _gauge("replicas", "replicas", "In each state.", "state"),
        _gauge("replicas_wanted", "replicas", "Asked for."),
        # Weighting, by the driver.
        _gauge("ess_frac", "share", "Effective sample size of a group over its size, mean."),
        _gauge("all_failed_frac", "share", "Groups in which every trajectory failed."),
        _counter("gates_refused", "refusals", "Weights missed weighting.gate."),
        # Training, by its first worker.
        _gauge("training_step", "steps", "Done."),
        _gauge("training_steps_planned", "steps", "Of the whole training."),
        _counter("training_tokens", "tokens", "That went through the model."),
        _gauge("training_step_duration_s", "seconds", "Of the last step."),
        _gauge("training_loss", "nats", "Weighted loss of the last step."),
        _gauge("training_nll", "nats a token", "Unweighted loss of the last step."),
        _gauge("training_kl_ref", "nats a token", "Estimated KL from the reference policy."),
        _gauge("training_held_out_loss", "nats", "Weighted loss on held-out prompts."),
        _gauge("training_grad_norm", "L2 norm", "Of the last step's gradient, before clipping."),
        _gauge("training_learning_rate", "a step", "Of the last step."),
        _gauge("training_ess", "samples", "Effective samples of the last step's batch."),
        _gauge("training_mfu", "share", "Model FLOPs of the GPUs' peak."),
        _gauge("training_peak_memory_gib", "GiB", "Of the first worker."),
    )
}
"""By name."""


class Exporter:
    """Writes metrics of one stage. Needs a connection to Ray.

    Args:
        run: The run directory, as it may be shown.
        stage: The stage's name.
    """

    def __init__(self, *, run: str, stage: str) -> None:
        self._tags = {"run": run, "stage": stage}
        self._open: dict[str, Any] = {}

    def count(self, name: str, amount: float) -> None:
        """Add to a counter."""
        if amount > 0:
            self._metric(name).inc(amount, self._tags)

    def set(self, name: str, value: float | None, **tags: str) -> None:
        """Set a gauge; None is what is not known and leaves it as it is."""
        if value is not None:
            self._metric(name).set(value, self._tags | tags)

    def _metric(self, name: str) -> Any:
        from ray.util.metrics import Counter, Gauge

        if name not in self._open:
            metric = METRICS[name]
            make = Counter if metric.kind == "counter" else Gauge
            description = f"{metric.text} Unit: {metric.unit}."
            self._open[name] = make(_PREFIX + name, description, _TAGS + metric.tags)
        return self._open[name]
