"""Fill a folder with the parts of a prompt set: those that are missing, and no others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from drift_ray.errors import StageError
from drift_ray.rollout.dispatch import Dispatcher
from drift_ray.rollout.monitor import Monitor, Totals
from drift_ray.rollout.pool import ReplicaPool
from drift_ray.rollout.work import Part, Play
from drift_ray.schema import FAILURE_SCHEMA, FAILURES_KEY, TRAJECTORY_SCHEMA
from drift_ray.store import FAILURES, RunStore
from drift_ray.types import Prompt

_LONGEST = 500
"""Characters of a failure, in an error."""


class PartPlan:
    """How a prompt set is cut into parts: read anew each time, never all in memory.

    A part's name depends on its work only, never on the attempt.

    Args:
        prompts: The prompt set, in its fixed order; iterated several times.
        folder: Folder of the parts, relative to the run directory.
        digest: Identifies everything that shapes the samples.
        prompts_per_part: Whole groups in one part.
        play: How the groups are played.
    """

    def __init__(
        self,
        prompts: Iterable[Prompt],
        *,
        folder: str,
        digest: str,
        prompts_per_part: int,
        play: Play,
    ) -> None:
        self.folder = folder
        self.play = play
        self._prompts = prompts
        self._digest = digest
        self._prompts_per_part = prompts_per_part
        self._committed: dict[str, str] = {}
        """Committed parts, which do not change any more, each with its file of failures."""

    def __iter__(self) -> Iterator[Part]:
        prompts = iter(self._prompts)
        number = 0
        while chunk := tuple(islice(prompts, self._prompts_per_part)):
            key = "\0".join([self._digest, *(prompt.prompt_id for prompt in chunk)])
            work = hashlib.blake2b(key.encode(), digest_size=4).hexdigest()
            yield Part(name=f"{self.folder}/part-{number:06d}-{work}.parquet", prompts=chunk)
            number += 1

    def is_done(self, store: RunStore, *, max_failed_frac: float = 1.0) -> bool:
        """Whether every part is committed, with no more failed trajectories than allowed.

        Raises:
            DataError: A committed part is truncated or foreign.
        """
        sizes = {part.name: len(part.prompts) for part in self}
        if sizes.keys() - self.committed(store):
            return False
        num_allowed = max_failed_frac * sum(sizes.values()) * self.play.group_size
        return self.num_failed(store, sizes) <= num_allowed

    def committed(self, store: RunStore) -> set[str]:
        """Names of the parts that are there, those of other plans included.

        Raises:
            DataError: One of them is truncated or foreign.
        """
        found = store.parts(self.folder)
        new = [name for name in found if name not in self._committed]
        for name, metadata in store.check_parts(new, TRAJECTORY_SCHEMA).items():
            self._committed[name] = metadata.get(FAILURES_KEY, b"").decode()
        return set(found)

    def failures(self, names: Iterable[str]) -> list[str]:
        """Files of the failed trajectories of committed parts."""
        return [file for name in names if (file := self._committed[name])]

    def num_failed(self, store: RunStore, names: Iterable[str]) -> int:
        """Failed trajectories of committed parts."""
        return store.num_rows(self.failures(names))

    def first_failure(self, store: RunStore) -> str:
        """What is recorded of the first failed trajectory of committed parts; there is one."""
        own = self.committed(store)
        (first, *_) = self.failures(part.name for part in self if part.name in own)
        message = str(store.read_table(first, FAILURE_SCHEMA, ["message"])["message"][0])
        return message.partition("\n")[0][:_LONGEST]

    def forget_failures(self, store: RunStore) -> int:
        """Delete all parts with failed trajectories, so that these are sampled again.

        Those of other plans in the same folder are none of this one's.

        Returns:
            The number of parts.
        """
        own = self.committed(store) & {part.name for part in self}
        lacking = [name for name in own if self._committed[name]]
        for name in lacking:
            store.remove(name)
            store.remove(self._committed.pop(name))
        return len(lacking)


def sample_missing(
    store: RunStore,
    pool: ReplicaPool,
    plan: PartPlan,
    *,
    stage: str,
    max_failed_frac: float,
    round_of: RunStore | None = None,
    meanwhile: Callable[[], object] = lambda: None,
) -> Totals:
    """Sample the parts that are not committed yet, seen from outside while it goes on.

    Args:
        store: The run directory.
        pool: Who samples.
        plan: The parts.
        stage: Its name.
        max_failed_frac: Share of failed trajectories past which to stop.
        round_of: The run of which ``store`` is a round, if it is one.
        meanwhile: Called now and then; what it raises ends the sampling.

    Returns:
        What was sampled now; parts that were there before do not count.

    Raises:
        DataError: A committed part is truncated or foreign.
        StageError: Replicas died again and again, or too many trajectories failed.
    """
    committed = plan.committed(store)
    wanted = {part.name: len(part.prompts) for part in plan}
    missing = wanted.keys() - committed
    work = Dispatcher(
        (part for part in plan if part.name in missing),
        num_groups=sum(wanted[name] for name in missing),
        max_group_deaths=pool.max_group_deaths,
    )
    num_trajectories = sum(wanted.values()) * plan.play.group_size
    num_failed = plan.num_failed(store, wanted.keys() & committed)

    def check_failed() -> None:
        if num_failed > max_failed_frac * num_trajectories:
            again = f"sample them again with `drift-ray {stage.split()[0]} --retry-failed`"
            if round_of:
                again = f"delete {store.path(plan.folder)} to sample this round again"
            raise StageError(
                f"{num_failed:,} trajectories failed, more than {max_failed_frac:.1%} of "
                f"{num_trajectories:,}; their causes are in {store.path(plan.folder)}/{FAILURES}. "
                f"The first: {plan.first_failure(store)}",
                f"Mend the cause and {again}, or raise rollout.max_failed_frac.",
            )

    check_failed()
    num_groups = sum(wanted.values())
    with Monitor(
        store, round_of or store, pool, work, stage=stage, num_groups=num_groups, play=plan.play
    ) as monitor:
        for report in pool.run(work, plan.play):
            if report is None:
                monitor.look()
                meanwhile()
                continue
            monitor.committed(report)
            num_failed += report.num_failures
            check_failed()
        return monitor.totals
