"""The replicas of a run: started once, fed with jobs, replaced when they die."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from drift_ray.cluster import task_failure, warn_if_too_large
from drift_ray.config import ModelConfig, ReplicaConfig
from drift_ray.errors import StageError
from drift_ray.progress import console
from drift_ray.rollout.worker import PartJob, PartReport, ReplicaWorker

logger = logging.getLogger(__name__)


class ReplicaPool:
    """Lazily started vLLM replicas that pull jobs. Use as a context manager.

    Args:
        run_url: The run directory; must be visible to every node.
        model: The reference policy.
        replicas: How many engines, how large.
    """

    def __init__(self, run_url: str, model: ModelConfig, replicas: ReplicaConfig) -> None:
        self._run_url = run_url
        self._model = model
        self._config = replicas
        self._actors: list[Any] = []
        self._restarts_left = replicas.max_restarts

    def __enter__(self) -> ReplicaPool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin starting the replicas in the background; they are waited for when first used."""
        config = self._config
        missing = config.num_replicas - len(self._actors)
        if missing:
            resources = {"CPU": config.num_cpus, "GPU": config.num_gpus}
            warn_if_too_large("Replicas", config.num_replicas, resources)
            console.print(f"[dim]starting {missing} vLLM replicas (about half a minute)[/dim]")
        self._actors.extend(self._new_actor() for _ in range(missing))

    def stop(self) -> None:
        """End all replicas and free their resources; the next run starts new ones."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors.clear()

    def run(self, jobs: Sequence[PartJob]) -> Iterator[PartReport]:
        """Do the jobs, each on the next idle replica, and yield reports as they come.

        A job whose replica dies is done again on a new one: the part it commits is the same.

        Raises:
            DriftRayError: The worker's own error, if it was one of ours.
            StageError: A job failed otherwise, or replicas died more often than allowed.
        """
        if not jobs:
            return
        self.start()
        queue = deque(jobs)
        # Only a replica that is up gets jobs: one that finds no room must not hold any back.
        running: dict[Any, tuple[Any, PartJob | None]] = {
            actor.warm_up.remote(): (actor, None) for actor in self._actors
        }
        while queue or any(job for _, job in running.values()):
            done, _ = ray.wait(list(running), num_returns=1)
            actor, job = running.pop(done[0])
            report: PartReport | None = None
            try:
                report = ray.get(done[0])
            except RayActorError as error:
                if job:
                    queue.appendleft(job)
                if actor in self._actors:  # the first of its jobs to tell of its death
                    actor = self._replace(actor, error)
                    running[actor.warm_up.remote()] = (actor, None)
            except RayTaskError as error:
                raise task_failure(error, f"Part {job.name}" if job else "A replica") from error
            else:
                num_free = 1 if job else self._config.parts_in_flight
                for _ in range(min(num_free, len(queue))):
                    next_job = queue.popleft()
                    running[actor.run.remote(next_job)] = (actor, next_job)
            if report:
                yield report

    def _new_actor(self) -> Any:
        config = self._config
        environment = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        if config.num_gpus == 0:
            # By default every engine pins itself to the first core of the machine.
            environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
            environment["OMP_NUM_THREADS"] = str(max(1, int(config.num_cpus)))
        return (
            ray.remote(ReplicaWorker)
            .options(
                num_cpus=config.num_cpus,
                num_gpus=config.num_gpus,
                max_concurrency=config.parts_in_flight,
                runtime_env={"env_vars": environment},
            )
            .remote(self._run_url, self._model, config)
        )

    def _replace(self, actor: Any, error: RayActorError) -> Any:
        if self._restarts_left == 0:
            raise StageError(
                f"Replicas died more than {self._config.max_restarts} times; the last one: {error}",
                "Look into Ray's logs. What is committed stays: run the same command to go on.",
            ) from error
        self._restarts_left -= 1
        logger.warning(
            "A replica died; starting another. Allowed from now on: %d.", self._restarts_left
        )
        self._actors.remove(actor)
        ray.kill(actor)  # it may only be out of reach, and would hold its GPU
        self._actors.append(self._new_actor())
        return self._actors[-1]
