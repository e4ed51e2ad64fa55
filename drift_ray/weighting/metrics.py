"""What weighting tells Prometheus; the table is in ``drift_ray/metrics.py``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from drift_ray.errors import StageError
from drift_ray.metrics import Exporter


@contextmanager
def weights_metrics(run: str, summary: Mapping[str, Any]) -> Iterator[None]:
    """Report a summary of weights, and whether they are refused in this block.

    Args:
        run: The run directory, as it may be shown.
        summary: As :func:`drift_ray.weighting.stage.run` returns it.
    """
    exporter = Exporter(run=run, stage="weigh")
    exporter.set("ess_frac", summary["ess_frac"]["mean"])
    exporter.set("all_failed_frac", summary["all_failed_frac"])
    try:
        yield
    except StageError:
        # A counter: its last value outlives this process, which is about to end.
        exporter.count("gates_refused", 1)
        raise
