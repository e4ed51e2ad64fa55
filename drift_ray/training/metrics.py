"""What a training tells Prometheus; the table is in ``drift_ray/metrics.py``."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from drift_ray.metrics import Exporter

if TYPE_CHECKING:
    from drift_ray.training.learner import StepMetrics

_GAUGES = (
    "loss",
    "nll",
    "kl_ref",
    "held_out_loss",
    "grad_norm",
    "learning_rate",
    "ess",
    "mfu",
    "peak_memory_gib",
)
"""Fields of a step's metrics that are exported as they are."""


class StepExporter:
    """Is called after every step. Use as a context manager, which is while the training runs.

    Args:
        run: The run directory, as it may be shown.
    """

    def __init__(self, run: str) -> None:
        self._exporter = Exporter(run=run, stage="train")

    def __enter__(self) -> StepExporter:
        self._exporter.set("running", True)
        self._exporter.set("last_progress_s", time.time())
        return self

    def __exit__(
        self,
        error: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exporter.set("running", False)

    def __call__(self, step: StepMetrics) -> None:
        """Report a step."""
        exporter = self._exporter
        exporter.set("last_progress_s", time.time())
        exporter.set("training_step", step.step + 1)
        exporter.set("training_steps_planned", step.num_steps)
        exporter.set("training_step_duration_s", step.step_s)
        exporter.count("training_tokens", step.num_tokens)
        for name in _GAUGES:
            exporter.set(f"training_{name}", getattr(step, name))
