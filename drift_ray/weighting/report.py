"""What weightings amount to: for a person and for a file."""

from __future__ import annotations

import pyarrow as pa

from drift_ray.config import WeightingConfig
from drift_ray.weighting.advice import Summary, advice
from drift_ray.weighting.diagnostics import summarize
from drift_ray.weighting.passes import Outcome


def outcome_summary(outcome: Outcome, config: WeightingConfig) -> Summary:
    """What one weighting amounts to: its parameters, all figures, and advice in words."""
    figures = summarize(pa.concat_tables(outcome.groups), pa.concat_tables(outcome.turns))
    return {
        "parameters": config.model_dump(mode="json", exclude={"gate"}),
        **figures,
        "advice": advice(figures, config),
    }
