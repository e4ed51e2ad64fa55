"""A sampling stage seen from outside: progress, metrics, and the status file that commands read."""

from __future__ import annotations

import logging
import os
import platform
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from drift_ray.errors import DataError, StorageError
from drift_ray.progress import StageProgress
from drift_ray.rollout.dispatch import Dispatcher
from drift_ray.rollout.metrics import StageMetrics
from drift_ray.rollout.pool import ReplicaPool
from drift_ray.rollout.status import ReplicaStatus, StageStatus, take_scale, write_status
from drift_ray.rollout.work import Counts, PartReport, Play
from drift_ray.store import RunStore, recordable

logger = logging.getLogger(__name__)

_LOCAL_EVERY_S = 2.0
_REMOTE_EVERY_S = 10.0
"""How often the status file is written and a wish for other numbers of replicas looked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """What a stage has sampled since it started."""

    counts: Counts
    """All that replicas did, work that was lost and done again included: what rates are made of."""
    committed: Counts
    """What stands in the parts."""
    duration_s: float
    """Since the first replica was up: starting the engines is not sampling."""
    cpu_s: float
    """CPU seconds of the replicas and of this process, the starts of engines not counted."""

    @property
    def tokens_per_s(self) -> float:
        """Sampled tokens per second, of all replicas together."""
        return self.counts.num_sampled_tokens / self.duration_s if self.duration_s else 0.0

    def __str__(self) -> str:
        counts = self.counts
        solved = counts.num_solved / max(counts.num_trajectories, 1)
        failed = f", {counts.num_failures:,} failed" if counts.num_failures else ""
        return f"{solved:.0%} solved{failed}, {self.tokens_per_s:,.0f} tokens/s"


class Monitor:
    """Shows and records how a stage goes. Use as a context manager.

    Args:
        store: The run directory, for metrics.
        front: Where people look and ask for other numbers of replicas.
        pool: Who samples.
        work: What is to be done.
        stage: Its name.
        num_groups: Groups of the whole stage, those committed before included.
        play: How they are played.
    """

    def __init__(
        self,
        store: RunStore,
        front: RunStore,
        pool: ReplicaPool,
        work: Dispatcher,
        *,
        stage: str,
        num_groups: int,
        play: Play,
    ) -> None:
        self._store = store
        self._front = front
        self._pool = pool
        self._work = work
        self._stage = stage
        self._group_size = play.group_size
        self._num_groups = num_groups
        self._counts_before = pool.fleet.counts
        self._cpu_before_s = pool.fleet.cpu_s + time.process_time()
        self._began_s = time.time()
        self._up_since_s: float | None = None
        self._looked_s = 0.0
        self._committed = Counts()
        self._records: list[dict[str, Any]] = []
        self._metrics = StageMetrics(str(front), stage, pool.fleet.num_lost)
        self._progress = StageProgress(
            stage,
            total=num_groups * play.group_size,
            unit="trajectories",
            done=self._num_done,
        )

    def __enter__(self) -> Monitor:
        self._progress.__enter__()
        return self

    def __exit__(
        self,
        error: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.__exit__(error, value, traceback)
        if value is None:
            self._records.append(self._cost())
            self._tell("done")
            return
        with suppress(StorageError):  # the error that ended the stage is the one to be seen
            self._tell(recordable(f"stopped: {str(value) or type(value).__name__}"))

    @property
    def totals(self) -> Totals:
        """What was sampled so far."""
        up_since_s = self._up_since_s or time.monotonic()
        return Totals(
            counts=self._pool.fleet.counts - self._counts_before,
            committed=self._committed,
            duration_s=time.monotonic() - up_since_s,
            cpu_s=self._pool.fleet.cpu_s + time.process_time() - self._cpu_before_s,
        )

    def look(self) -> None:
        """Show how far everything has come; call it often."""
        if self._up_since_s is None and self._pool.fleet.num_up:
            self._up_since_s = time.monotonic()
        totals = self.totals
        self._progress.update(self._num_done, str(totals))
        every_s = _LOCAL_EVERY_S if self._store.is_local else _REMOTE_EVERY_S
        if time.monotonic() - self._looked_s < every_s:
            return
        self._looked_s = time.monotonic()
        try:
            self._tell("running")
            wish = take_scale(self._front, since_s=self._pool.fleet.began_s)
        except (StorageError, DataError) as error:
            # Not worth a run: what matters is committed elsewhere, or fails there.
            logger.warning("%s", error)
            return
        if wish:
            logger.info("%d replicas are wanted from now on", wish)
            self._pool.fleet.num_wanted = wish

    def committed(self, report: PartReport) -> None:
        """Record a part."""
        logger.info(
            "%s: %d trajectories, %d solved, %d failed, %d tokens",
            report.name,
            report.num_trajectories,
            report.num_solved,
            report.num_failures,
            report.num_sampled_tokens,
        )
        self._committed += Counts(
            num_trajectories=report.num_trajectories,
            num_failures=report.num_failures,
            num_solved=report.num_solved,
            num_sampled_tokens=report.num_sampled_tokens,
        )
        self._records.append({"stage": self._stage, "time_s": time.time(), **asdict(report)})

    def _cost(self) -> dict[str, Any]:
        """What the stage took, as a line of the metrics."""
        totals = self.totals
        return {
            "stage": self._stage,
            "event": "end",
            "time_s": time.time(),
            "duration_s": totals.duration_s,
            "cpu_s": totals.cpu_s,
            **asdict(totals.counts),
        }

    @property
    def _num_done(self) -> int:
        return (self._num_groups - self._work.num_unfinished) * self._group_size

    def _tell(self, state: str) -> None:
        totals = self.totals
        given_up = Counts(num_failures=self._work.num_given_up * self._group_size)
        counts = totals.counts + given_up
        self._metrics.set(
            counts,
            self._pool.fleet,
            groups_left=self._work.num_unfinished,
            running=state == "running",
        )
        num_now = totals.counts.num_trajectories + totals.counts.num_failures
        num_left = self._work.num_unfinished * self._group_size
        status = StageStatus(
            state=state,
            stage=self._stage,
            driver=f"{platform.node()}:{os.getpid()}",
            began_s=self._began_s,
            time_s=time.time(),
            num_done=self._num_done,
            num_total=self._num_groups * self._group_size,
            num_solved=counts.num_solved,
            num_failures=counts.num_failures,
            tokens_per_s=totals.tokens_per_s,
            time_left_s=num_left * totals.duration_s / num_now if num_now else None,
            num_replicas_wanted=self._pool.fleet.num_wanted,
            replicas=[
                ReplicaStatus(
                    replica_id=each.replica_id,
                    state=each.state.value,
                    node=each.placement.node if each.placement else None,
                    pid=each.placement.pid if each.placement else None,
                    num_in_flight=each.num_in_flight,
                    num_trajectories=each.counts.num_trajectories,
                    num_sampled_tokens=each.counts.num_sampled_tokens,
                )
                for each in self._pool.fleet
            ],
        )
        write_status(self._front, status)
        if self._records:
            self._store.append_metrics(self._records)
            self._records = []
