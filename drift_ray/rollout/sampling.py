"""Fill a folder with the parts of a prompt set: those that are missing, and no others."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Sequence

from drift_ray.config import SamplingConfig, TaskConfig
from drift_ray.errors import StageError
from drift_ray.progress import StageProgress
from drift_ray.rollout.pool import ReplicaPool
from drift_ray.rollout.worker import PartJob, PartReport, PolicyRef
from drift_ray.schema import TRAJECTORY_SCHEMA
from drift_ray.store import FAILURES, RunStore
from drift_ray.types import Prompt


@dataclasses.dataclass(slots=True)
class Totals:
    """Sums over the reports of a stage."""

    num_trajectories: int = 0
    num_failures: int = 0
    num_solved: int = 0
    num_sampled_tokens: int = 0
    started_s: float | None = None
    """When the first job began: starting the engines is not sampling."""
    tokens_per_s: float = 0.0

    def add(self, report: PartReport) -> None:
        """Count one more part."""
        now = time.monotonic()
        self.started_s = self.started_s or now - report.duration_s
        self.num_trajectories += report.num_trajectories
        self.num_failures += report.num_failures
        self.num_solved += report.num_solved
        self.num_sampled_tokens += report.num_sampled_tokens
        self.tokens_per_s = self.num_sampled_tokens / max(now - self.started_s, 1e-9)

    def __str__(self) -> str:
        solved = self.num_solved / max(self.num_trajectories, 1)
        failed = f", {self.num_failures:,} failed" if self.num_failures else ""
        return f"{self.tokens_per_s:,.0f} tokens/s, {solved:.0%} solved{failed}"


def plan_parts(
    prompts: Sequence[Prompt],
    *,
    folder: str,
    digest: str,
    prompts_per_part: int,
    group_size: int,
    policy: PolicyRef,
    task: TaskConfig,
    sampling: SamplingConfig,
    max_attempts: int,
    seed: int,
) -> list[PartJob]:
    """Cut a prompt set into jobs. A part's name depends on its work only, never on the attempt.

    Args:
        prompts: The prompt set, in its fixed order.
        folder: Folder of the parts, relative to the run directory.
        digest: Identifies everything that shapes the samples.
        prompts_per_part: Whole groups in one part.
        group_size: Trajectories a prompt.
        policy: Which weights sample.
        task: Environment and grader.
        sampling: How a turn is sampled.
        max_attempts: How often a trajectory is tried before it counts as failed.
        seed: The run's seed.
    """
    jobs = []
    for start in range(0, len(prompts), prompts_per_part):
        chunk = tuple(prompts[start : start + prompts_per_part])
        key = "\0".join([digest, *(prompt.prompt_id for prompt in chunk)])
        work = hashlib.blake2b(key.encode(), digest_size=4).hexdigest()
        jobs.append(
            PartJob(
                name=f"{folder}/part-{start // prompts_per_part:06d}-{work}.parquet",
                prompts=chunk,
                group_size=group_size,
                policy=policy,
                environment=task.environment,
                grader=task.grader,
                sampling=sampling,
                max_attempts=max_attempts,
                seed=seed,
            )
        )
    return jobs


def missing_jobs(store: RunStore, jobs: Sequence[PartJob]) -> list[PartJob]:
    """The jobs whose part is not committed.

    Raises:
        DataError: A committed part is truncated or foreign.
    """
    committed = set(store.parts(jobs[0].name.rsplit("/", 1)[0]))
    store.check_parts([job.name for job in jobs if job.name in committed], TRAJECTORY_SCHEMA)
    return [job for job in jobs if job.name not in committed]


def sample_missing(
    store: RunStore,
    pool: ReplicaPool,
    jobs: Sequence[PartJob],
    *,
    stage: str,
    max_failed_frac: float,
) -> Totals:
    """Do the jobs whose part is not committed yet, showing progress and keeping metrics.

    Returns:
        What was sampled now; parts that were there before do not count.

    Raises:
        DataError: A committed part is truncated or foreign.
        StageError: A job failed for good, or too many trajectories did.
    """
    missing = missing_jobs(store, jobs)
    total = sum(map(_num_trajectories, jobs))
    done = total - sum(map(_num_trajectories, missing))
    totals = Totals()
    with StageProgress(stage, total=total, unit="trajectories", done=done) as progress:
        for report in pool.run(missing):
            totals.add(report)
            progress.advance(report.num_trajectories + report.num_failures, str(totals))
            store.append_metrics(
                [{"stage": stage, "time_s": time.time(), **dataclasses.asdict(report)}]
            )
            if totals.num_failures > max_failed_frac * total:
                folder = f"{report.name.rsplit('/', 1)[0]}/{FAILURES}"
                raise StageError(
                    f"{totals.num_failures} trajectories failed, more than {max_failed_frac:.1%} "
                    f"of {total:,}; their causes are in {store.path(folder)}.",
                    "Mend the cause and delete the parts with failures, or raise "
                    "rollout.max_failed_frac.",
                )
    return totals


def _num_trajectories(job: PartJob) -> int:
    return len(job.prompts) * job.group_size
