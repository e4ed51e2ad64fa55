"""Weights of parts as they are committed, while others are still sampled.

They are those that the weighting stage gives in the end, which leaves them as they are: groups are
whole within a part, and the configuration refuses what depends on the whole run.
"""

from __future__ import annotations

from drift_ray.config import WeightingConfig
from drift_ray.schema import CONTENT_KEY, TRAJECTORY_SCHEMA
from drift_ray.store import ROLLOUTS, WEIGHTS, RunStore
from drift_ray.weighting.tasks import has_own_weights, weigh_alone


class PartByPart:
    """Weighs every rollout part once."""

    def __init__(self, store: RunStore, config: WeightingConfig, *, digest: str) -> None:
        """Remove weights that were made by other settings or of other rollouts.

        Args:
            store: The run directory.
            config: How to weigh.
            digest: Names the weights of the whole run.

        Raises:
            DataError: A rollout part is truncated or foreign.
        """
        self._store, self._config, self._digest = store, config, digest
        folder = f"{WEIGHTS}/{config.name}"
        self._weighed: set[str] = set()
        store.remove(f"{folder}/summary.json")
        contents = store.check_parts(store.parts(ROLLOUTS), TRAJECTORY_SCHEMA)
        for weights in store.parts(folder):
            part = f"{ROLLOUTS}/{weights.rsplit('/', 1)[1]}"
            content = contents.get(part, {}).get(CONTENT_KEY)
            if content and has_own_weights(store, part, content, config, digest=digest):
                self._weighed.add(part)
            else:
                store.remove(weights)

    def weigh(self) -> None:
        """Commit the weights of all parts that were committed since.

        Raises:
            DataError: A part is damaged, or a weighting of the user's gives no weights.
        """
        for part in self._store.parts(ROLLOUTS):
            if part not in self._weighed:
                weigh_alone(self._store, part, self._config, digest=self._digest)
                self._weighed.add(part)
