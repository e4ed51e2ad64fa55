"""The replicas of a pool as Ray sees them: asked for, placed, started, and ended."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from drift_ray.cluster import warn_if_too_large
from drift_ray.config import ModelConfig, ReplicaConfig, VllmConfig
from drift_ray.errors import StageError
from drift_ray.progress import console
from drift_ray.rollout.work import Counts, GroupKey
from drift_ray.rollout.worker import MakeEngine, Placement, ReplicaWorker

logger = logging.getLogger(__name__)

# Answers, commits and fetches go on beside each other.
_MAX_CONCURRENCY = 8


class ReplicaState(StrEnum):
    """How far a replica has come."""

    PENDING = "pending"
    """Waits for room in the cluster."""
    STARTING = "starting"
    """Loads its engine."""
    UP = "up"
    DRAINING = "draining"
    """Finishes what it plays, and leaves."""


@dataclass(slots=True, eq=False)
class Replica:
    """One replica, as its driver knows it."""

    replica_id: int
    actor: Any
    placement_group: PlacementGroup | None
    deaths_in_a_row: int
    """Predecessors that died before they finished a group."""
    state: ReplicaState = ReplicaState.PENDING
    placement: Placement | None = None
    num_wanted: int = 0
    """Trajectories it had room for when it last answered."""
    num_in_flight: int = 0
    counts: Counts = field(default_factory=Counts)
    cpu_s: float = 0.0
    """CPU seconds of its process since its engine was up."""
    forget: list[GroupKey] = field(default_factory=list)
    """Groups it need not keep any longer; told with the next exchange."""
    call: Any = None
    """The answer that the driver waits for: of placement, warm-up or exchange."""
    called_s: float = field(default_factory=time.monotonic)
    drain_until_s: float = 0.0
    """When a draining replica has to be gone."""


class Fleet:
    """Has as many replicas as wanted, and replaces those that die.

    Args:
        run_url: The run directory; must be visible to every node.
        model: The reference policy.
        config: Size and arguments of each engine.
        make_engine: Loads an engine inside a replica.
    """

    def __init__(
        self, run_url: str, model: ModelConfig, config: ReplicaConfig, make_engine: MakeEngine
    ) -> None:
        self._arguments = (run_url, model, config, make_engine)
        self._config = config
        self._num_made = 0
        self._replicas: dict[int, Replica] = {}
        self._counts_of_the_dead = Counts()
        self._cpu_of_the_dead_s = 0.0
        self._short_since_s: float | None = None
        self.began_s = time.time()
        """In seconds since 1970: older wishes for another number of replicas are not for it."""
        self.num_lost = 0
        """Replicas that went without being let go."""
        self.was_up = False
        """Whether any replica ever came up: then what keeps another from it is its own trouble."""
        self.num_wanted = config.num_replicas.max
        """Replicas to have; may be changed at any time."""

    def __iter__(self) -> Iterator[Replica]:
        return iter(list(self._replicas.values()))

    def __contains__(self, replica_id: object) -> bool:
        return replica_id in self._replicas

    def __getitem__(self, replica_id: int) -> Replica:
        return self._replicas[replica_id]

    def in_state(self, *states: ReplicaState) -> list[Replica]:
        """Replicas that have come so far."""
        return [each for each in self if each.state in states]

    @property
    def num_up(self) -> int:
        """Replicas that take on work."""
        return len(self.in_state(ReplicaState.UP))

    @property
    def counts(self) -> Counts:
        """What all replicas have done so far, work that was lost included."""
        return sum((each.counts for each in self), self._counts_of_the_dead)

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all replicas so far, without the starts of their engines."""
        return sum((each.cpu_s for each in self), self._cpu_of_the_dead_s)

    def fill(self) -> None:
        """Ask for the replicas that are missing; each is placed when the cluster has room."""
        present = len(self) - len(self.in_state(ReplicaState.DRAINING))
        missing = self.num_wanted - present
        if missing > 0:
            warn_if_too_large("Replicas", self.num_wanted, self._resources)
            replicas = "1 replica" if missing == 1 else f"{missing} replicas"
            console.print(f"[dim]starting {replicas} (about half a minute)[/dim]")
        for _ in range(missing):
            self._new()

    def __len__(self) -> int:
        return len(self._replicas)

    def surplus(self) -> list[Replica]:
        """Replicas to let go, those that have come the least far first."""
        staying = [each for each in self if each.state is not ReplicaState.DRAINING]
        order = list(ReplicaState)
        staying.sort(key=lambda each: (order.index(each.state), each.num_in_flight))
        return staying[: max(0, len(staying) - self.num_wanted)]

    def replace(self, replica: Replica, reason: object) -> None:
        """A replica is lost: ask for another one.

        Raises:
            StageError: It and its predecessors died in a row more often than allowed.
        """
        self.remove(replica)
        if replica.state is ReplicaState.DRAINING:
            return
        self.num_lost += 1
        deaths = 1 if replica.counts != Counts() else replica.deaths_in_a_row + 1
        if deaths > self._config.max_restarts:
            raise StageError(
                f"A replica and its successors died more than {self._config.max_restarts} times "
                f"without finishing a group; the last one: {reason}",
                "Look into Ray's logs. What is committed stays: run the same command to go on.",
            )
        logger.warning(
            "Replica %d is lost (%s); starting another.",
            replica.replica_id,
            str(reason).partition("\n")[0],  # the raylet tells the rest
            extra={"replica": replica.replica_id},
        )
        self._new(deaths)

    def remove(self, replica: Replica) -> None:
        """End a replica: kill the actor and free what it holds."""
        del self._replicas[replica.replica_id]
        self._counts_of_the_dead += replica.counts
        self._cpu_of_the_dead_s += replica.cpu_s
        ray.kill(replica.actor)
        if replica.placement_group:
            remove_placement_group(replica.placement_group)

    def check_enough(self) -> None:
        """Give up when the cluster has had too little room for too long.

        Raises:
            StageError: Says how many replicas found room and what each asks for.
        """
        least = min(self._config.num_replicas.min, self.num_wanted)
        num_placed = len(self) - len(self.in_state(ReplicaState.PENDING))
        now = time.monotonic()
        if num_placed >= least:
            self._short_since_s = None
        elif self._short_since_s is None:
            self._short_since_s = now
        elif now - self._short_since_s > self._config.max_wait_s:
            raise StageError(
                f"For {self._config.max_wait_s:g} s the cluster had room for {num_placed} "
                f"replicas of {self._resources}{self._where}, fewer than the {least} of "
                "replicas.num_replicas.min.",
                "Give the cluster more nodes, ask for less a replica, or lower the minimum.",
            )

    @property
    def _resources(self) -> dict[str, float]:
        """What one replica asks of the cluster."""
        config = self._config
        wanted = {"CPU": config.num_cpus, "GPU": config.num_gpus, **config.resources}
        return {name: amount for name, amount in wanted.items() if amount}

    @property
    def _where(self) -> str:
        labels = self._config.label_selector
        return f" on nodes labelled {labels}" if labels else ""

    def _new(self, deaths_in_a_row: int = 0) -> None:
        self._num_made += 1
        group, options = self._placement()
        actor = (
            ray.remote(ReplicaWorker)
            .options(
                max_concurrency=_MAX_CONCURRENCY,
                runtime_env={"env_vars": self._environment()},
                **options,
            )
            .remote(*self._arguments)
        )
        self._replicas[self._num_made] = Replica(
            replica_id=self._num_made,
            actor=actor,
            placement_group=group,
            deaths_in_a_row=deaths_in_a_row,
            call=actor.place.remote(),
        )

    def _placement(self) -> tuple[PlacementGroup | None, dict[str, Any]]:
        """A place for one engine: of its own, or a bundle a device when it spans several."""
        config = self._config
        engine = config.engine
        num_devices = engine.world_size if isinstance(engine, VllmConfig) else 1
        options = {"num_cpus": config.num_cpus, "resources": config.resources}
        labels = config.label_selector
        if num_devices == 1 or config.num_gpus == 0:
            return None, {**options, "num_gpus": config.num_gpus, "label_selector": labels}
        per_device = {"GPU": config.num_gpus / num_devices}
        first = {**self._resources, **per_device}
        group = placement_group(
            [first, *[per_device] * (num_devices - 1)],
            strategy="PACK",
            name=f"drift_ray-replica-{uuid.uuid4().hex}",  # what is nameless is Ray Train's
            bundle_label_selector=[labels] * num_devices if labels else None,
        )
        # vLLM starts a worker on every bundle's GPU by itself, so the actor asks for none.
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
            placement_group=group,
            placement_group_bundle_index=0,
            placement_group_capture_child_tasks=True,
        )
        return group, options

    def _environment(self) -> dict[str, str]:
        config = self._config
        variables = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        if config.num_gpus == 0:
            # By default every engine pins itself to the first core of the machine.
            variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
            variables["OMP_NUM_THREADS"] = str(max(1, int(config.num_cpus)))
        return variables
