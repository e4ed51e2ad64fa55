"""Fill a folder with the parts of a prompt set: those that are missing, and no others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice

from drift_ray.errors import StageError
from drift_ray.rollout.dispatch import Dispatcher
from drift_ray.rollout.monitor import Monitor, Totals
from drift_ray.rollout.pool import ReplicaPool
from drift_ray.rollout.work import Part, Play
from drift_ray.schema import TRAJECTORY_SCHEMA
from drift_ray.store import FAILURES, RunStore
from drift_ray.types import Prompt


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
        self._sound: set[str] = set()
        """Committed parts whose footers were read; they do not change any more."""

    def __iter__(self) -> Iterator[Part]:
        prompts = iter(self._prompts)
        number = 0
        while chunk := tuple(islice(prompts, self._prompts_per_part)):
            key = "\0".join([self._digest, *(prompt.prompt_id for prompt in chunk)])
            work = hashlib.blake2b(key.encode(), digest_size=4).hexdigest()
            yield Part(name=f"{self.folder}/part-{number:06d}-{work}.parquet", prompts=chunk)
            number += 1

    def is_done(self, store: RunStore) -> bool:
        """Whether every part is committed.

        Raises:
            DataError: A committed part is truncated or foreign.
        """
        committed = self.committed(store)
        return all(part.name in committed for part in self)

    def committed(self, store: RunStore) -> set[str]:
        """Names of the parts that are there, those of other plans included.

        Raises:
            DataError: One of them is truncated or foreign.
        """
        found = set(store.parts(self.folder))
        store.check_parts(sorted(found - self._sound), TRAJECTORY_SCHEMA)
        self._sound |= found
        return found

    def failures(self, store: RunStore) -> dict[str, str]:
        """Files of failed trajectories, each with the part that lacks these trajectories.

        Those of other plans in the same folder are none of this one's.
        """
        own = {part.name for part in self}
        found = {
            name: f"{self.folder}/{name.rsplit('/', 1)[1]}"
            for name in store.parts(f"{self.folder}/{FAILURES}")
        }
        return {name: part for name, part in found.items() if part in own}

    def forget_failures(self, store: RunStore) -> int:
        """Delete all parts with failed trajectories, so that these are sampled again.

        Returns:
            The number of parts.
        """
        failures = self.failures(store)
        for failed, part in failures.items():
            store.remove(part)
            store.remove(failed)
        self._sound -= set(failures.values())
        return len(failures)


def sample_missing(
    store: RunStore, pool: ReplicaPool, plan: PartPlan, *, stage: str, max_failed_frac: float
) -> Totals:
    """Sample the parts that are not committed yet, seen from outside while it goes on.

    Returns:
        What was sampled now; parts that were there before do not count.

    Raises:
        DataError: A committed part is truncated or foreign.
        StageError: Replicas died again and again, or too many trajectories failed.
    """
    committed = plan.committed(store)
    sizes = [(part.name in committed, len(part.prompts)) for part in plan]
    num_groups = sum(size for _, size in sizes)
    work = Dispatcher(
        (part for part in plan if part.name not in committed),
        num_groups=sum(size for there, size in sizes if not there),
        max_group_deaths=pool.max_group_deaths,
    )
    failures = plan.failures(store)
    num_failed = store.num_rows([name for name, part in failures.items() if part in committed])
    num_trajectories = num_groups * plan.play.group_size
    with Monitor(store, pool, work, stage=stage, num_groups=num_groups, play=plan.play) as monitor:
        for report in pool.run(work, plan.play):
            if report is None:
                monitor.look()
                continue
            monitor.committed(report)
            num_failed += report.num_failures
            if num_failed > max_failed_frac * num_trajectories:
                raise StageError(
                    f"{num_failed:,} trajectories failed, more than {max_failed_frac:.1%} "
                    f"of {num_trajectories:,}; their causes are in "
                    f"{store.path(plan.folder)}/{FAILURES}.",
                    "Mend the cause and sample them again with `drift-ray rollout --retry-failed`, "
                    "or raise rollout.max_failed_frac.",
                )
        return monitor.totals
