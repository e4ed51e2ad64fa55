"""How the stages follow each other."""

from __future__ import annotations

from drift_ray.config.section import Section


class PipelineConfig(Section):
    """How the stages follow each other."""

    overlap: bool = False
    """Train on what is committed and weighed while the rest is still sampled. The first epoch then
    takes the trajectories in the order in which their parts were committed, as recorded in
    ``checkpoints/*/waves.json``. Needs room for replicas and training workers at once."""
