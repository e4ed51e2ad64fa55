"""A launcher as a Ray job: its code on the way, its id, its log, its outcome."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import logging
import re
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift_ray.errors import EXIT_INTERRUPTED, StageError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ROOT = Path(__file__).resolve().parent.parent
AGENT_START_TIMEOUT_S = 90
JOB_STOP_TIMEOUT_S = 30


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """What every submission takes: a launcher, a configuration, a run directory, own code."""
    parser.add_argument("--script", default="jobs/pipeline.py", metavar="PATH", help="the launcher")
    parser.add_argument("--config", required=True, metavar="PATH", help="or builtin:NAME")
    parser.add_argument("--run", required=True, metavar="URL", help="the run directory")
    parser.add_argument(
        "--with",
        dest="extras",
        action="append",
        default=[],
        type=Path,
        metavar="PATH",
        help="a module or package of your own that the configuration names (may be repeated)",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_intermixed_args(argv)
    if not (ROOT / args.script).is_file():
        parser.error(f"no such script: {args.script}")
    for extra in args.extras:
        if not extra.exists():
            parser.error(f"no such file or folder: {extra}")
    return args


def submission_id(run: str) -> str:
    """The id of a run's first job: named after the run, in the characters that Ray allows."""
    name = run.rstrip("/").rsplit("/", 1)[-1]
    return "drift-ray-" + re.sub(r"[^A-Za-z0-9_.-]+", "-", name)


def next_submission_id(client: JobSubmissionClient, run: str) -> str:
    """The id of a run's next job: a head takes each once, and a run is submitted again to go on.

    Raises:
        StageError: A job of this name is still at work; two would do the same work twice.
    """
    jobs = client.list_jobs()
    for job in jobs:
        if not job.status.is_terminal() and _is_of(job.entrypoint, run):
            raise StageError(
                f"The job {job.submission_id} is still at work ({job.status}).",
                f"Follow it with `ray job logs --follow {job.submission_id}`, or end it with "
                f"`ray job stop {job.submission_id}`; then submit again to go on with the run.",
            )
    taken, first = {job.submission_id for job in jobs}, submission_id(run)
    later = (f"{first}-again-{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain([first], later) if name not in taken)


def _is_of(entrypoint: str, run: str) -> bool:
    """Whether a job's command, whoever submitted it, names a run directory."""
    words = (word.strip("'\"").rstrip("/") for word in entrypoint.split())
    return f"run={run.rstrip('/')}" in words


def copy_product(target: Path, extras: Sequence[Path]) -> Path:
    """Copy what a job needs, and nothing else that may lie in the checkout, into a new folder."""
    ignore = shutil.ignore_patterns("__pycache__")
    for source in (ROOT / "drift_ray", ROOT / "jobs", *extras):
        if source.is_dir():
            shutil.copytree(source, target / source.name, ignore=ignore)
        else:
            shutil.copy(source, target)
    return target


def run_job(
    client: JobSubmissionClient,
    *,
    entrypoint: str,
    submission_id: str,
    working_dir: Path,
    stop_on: Sequence[signal.Signals],
) -> int:
    """Submit a job, follow its log to its end and print its outcome.

    Args:
        client: Of the head.
        entrypoint: The command, run in the folder where the job's code is unpacked.
        submission_id: One that the head has not seen.
        working_dir: What is uploaded.
        stop_on: Signals that stop the job.

    Returns:
        The exit code of the entrypoint; 130 when interrupted, 1 when it never ran.

    Raises:
        RuntimeError: It cannot be submitted.
        ConnectionError: It was, and then the head was lost; it may go on.
    """
    import aiohttp
    from ray.job_submission import JobStatus

    for handler in logging.getLogger("ray").handlers:  # "Uploading package", "WebSocket closed"
        handler.setLevel(logging.WARNING)
    job = _submit(
        client,
        entrypoint=entrypoint,
        submission_id=submission_id,
        runtime_env={"working_dir": str(working_dir)},
    )
    print(f"job {job}: {entrypoint}", flush=True)
    try:
        is_stopped = asyncio.run(_follow(client, job, stop_on))
        details = client.get_job_info(job)
        if not details.status.is_terminal() and not is_stopped:
            raise ConnectionError("its log has ended before it")
    except (RuntimeError, OSError, aiohttp.ClientError) as error:
        raise ConnectionError(
            f"The job {job} is out of sight: {error}.\n"
            f"  → It may go on: `ray job logs --follow {job}` shows it."
        ) from error
    # After its first sentence the message repeats the log.
    print(f"job {job}: {details.status}. {details.message.partition(', last')[0]}", flush=True)
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.FAILED:
        return max(details.driver_exit_code or 1, 1)
    return EXIT_INTERRUPTED


def _submit(client: JobSubmissionClient, **request: Any) -> str:
    """Submit when the head can take jobs: it answers before its job agent is up."""
    deadline = time.monotonic() + AGENT_START_TIMEOUT_S
    while True:
        try:
            return client.submit_job(**request)
        except RuntimeError as error:  # sent after the head itself has waited for 10 s
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise


async def _follow(client: JobSubmissionClient, job: str, stop_on: Sequence[signal.Signals]) -> bool:
    """Print the job's log until the job ends; an interrupt stops the job and its log goes on.

    Returns:
        Whether it was interrupted.
    """
    loop = asyncio.get_running_loop()
    following = asyncio.current_task()
    assert following is not None  # a coroutine runs in a task
    stopping = False

    def stop() -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            print(f"job {job}: stopping", file=sys.stderr, flush=True)
            loop.call_later(JOB_STOP_TIMEOUT_S, following.cancel)
            client.stop_job(job)

    for signal_number in stop_on:
        loop.add_signal_handler(signal_number, stop)
    with contextlib.suppress(asyncio.CancelledError):
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)
    return stopping
