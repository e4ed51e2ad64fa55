"""Weighing and training beside the rollouts: started before them, ended with whatever happens.

The stages meet in the run directory here too. A thread weighs every part that is committed; the
training runs in an actor of its own, waits for weighed parts, and learns from the summary of the
weights that no part is missing any more.
"""

from __future__ import annotations

import _thread
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from drift_ray.cluster import logical_cpus, placed_apart, replicas_can_stay, task_failure
from drift_ray.config import RunConfig
from drift_ray.errors import StageError
from drift_ray.lineage import Lineage
from drift_ray.store import RunStore
from drift_ray.topup.rounds import read_rounds
from drift_ray.training import stage as training
from drift_ray.training.rounds import Rounds
from drift_ray.training.waves import Overlap
from drift_ray.weighting.part_by_part import PartByPart

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

logger = logging.getLogger(__name__)

_POLL_S = 1.0


@contextmanager
def training_beside(
    store: RunStore, config: RunConfig, lineage: Lineage, overlap: Overlap | None
) -> Iterator[TrainingBeside | None]:
    """Train beside what happens in this block, if that is wanted, possible and finds room.

    Args:
        store: The run directory.
        config: The run.
        lineage: What it is made of.
        overlap: What the training has to know of the rollouts; None: it is not wanted.

    Yields:
        The training; None where it has to wait for its turn.
    """
    if overlap is None or not _is_possible(store, config):
        yield None
        return
    beside = TrainingBeside(store, config, lineage, overlap)
    try:
        yield beside
    finally:
        beside.close()


def _is_possible(store: RunStore, config: RunConfig) -> bool:
    """Whether a training beside the rollouts finds room and whole groups; else says why not."""
    # Nodes for trainers alone may not be there yet: a cluster grows when they are asked for.
    if not (placed_apart(config) or replicas_can_stay(config)):
        logger.warning(
            "pipeline.overlap: the cluster has no room for %d replicas and %d training workers "
            "at once (%d CPUs with what Ray needs), so they take turns. Give it more nodes, or "
            "lower replicas.num_replicas or training.num_workers.",
            config.replicas.num_replicas.max,
            config.training.num_workers.max,
            logical_cpus(config),
        )
        return False
    if read_rounds(store):
        logger.warning(
            "pipeline.overlap: after a top-up, groups stand in several parts, so weights need "
            "all of them: the training waits for the rollouts."
        )
        return False
    return True


class BackgroundTraining:
    """A training that goes on in an actor of its own, while this process does other things."""

    def __init__(
        self, store: RunStore, config: RunConfig, digest: str, beside: Overlap | Rounds
    ) -> None:
        """Start it.

        Args:
            store: The run directory.
            config: The run.
            digest: Names the training.
            beside: What goes on beside it.
        """
        import ray

        self._store, self._digest = store, digest
        # What it starts ends with it, so one call ends a training that is under way.
        self._actor: ActorHandle = ray.remote(num_cpus=0)(_Training).remote()
        self._result: ObjectRef = self._actor.run.remote(config, store.url, digest, beside)

    def result(self) -> dict[str, Any]:
        """Wait for the end of the training.

        Returns:
            The summary that it committed.

        Raises:
            DriftRayError: As :func:`drift_ray.training.stage.run`.
        """
        with training.progress(self._store, self._digest, beside_rollouts=True):
            return self._get()

    def raise_if_failed(self, *, wait_s: float = 0.0) -> bool:
        """Look whether the training has ended badly.

        Args:
            wait_s: How long to wait for its end.

        Returns:
            Whether it has ended well.

        Raises:
            DriftRayError: As :func:`drift_ray.training.stage.run`.
        """
        import ray

        ended, _ = ray.wait([self._result], timeout=wait_s)
        if ended:
            self._get()
        return bool(ended)

    def close(self) -> None:
        """End the training unless it is done; its checkpoints stay."""
        import ray

        ray.kill(self._actor)

    def _get(self) -> dict[str, Any]:
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        try:
            summary: dict[str, Any] = ray.get(self._result)
        except RayTaskError as error:
            raise task_failure(error, "Training") from error
        except RayActorError as error:
            raise StageError(
                f"The process that runs the training died: {error}",
                "Run the same command again to go on from the last checkpoint.",
            ) from error
        return summary


class TrainingBeside(BackgroundTraining):
    """A training that has begun before the rollouts end, and the weighing it lives on."""

    def __init__(
        self, store: RunStore, config: RunConfig, lineage: Lineage, overlap: Overlap
    ) -> None:
        """Start both.

        Raises:
            DataError: A rollout part is truncated or foreign.
        """
        self._parts = PartByPart(store, config.weighting, digest=lineage.weights)
        self._error: BaseException | None = None
        self._rollouts_end = threading.Event()
        super().__init__(store, config, lineage.model, overlap)
        on_main_thread = threading.current_thread() is threading.main_thread()
        self._watcher = threading.Thread(target=self._watch, args=(on_main_thread,), daemon=True)
        self._watcher.start()

    @contextmanager
    def rollouts(self) -> Iterator[None]:
        """Sample in this block; an error of weighing or training ends it as Ctrl-C does.

        Raises:
            DriftRayError: That error.
        """
        try:
            try:
                yield
            finally:
                self._rollouts_end.set()
                self._watcher.join()
        except KeyboardInterrupt:
            if self._error is None:
                raise
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the training unless it is done, and the weighing; its checkpoints stay."""
        self._rollouts_end.set()
        self._watcher.join()
        super().close()

    def _watch(self, on_main_thread: bool) -> None:
        """Weigh while rollouts go on, and stop them when this or the training fails."""
        try:
            while not self._rollouts_end.wait(_POLL_S):
                self._parts.weigh()
                self.raise_if_failed()
        except Exception as error:  # raised again where it is waited for
            self._error = error
            if on_main_thread and not self._rollouts_end.is_set():
                _thread.interrupt_main()


class _Training:
    """The training stage in a process of its own."""

    def run(
        self, config: RunConfig, url: str, digest: str, beside: Overlap | Rounds
    ) -> dict[str, Any]:
        return training.run(config, RunStore(url), digest=digest, beside=beside)
