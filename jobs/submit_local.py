"""Try a launcher as a Ray job on this machine: private head, Jobs API, log, outcome, nothing left.

    python jobs/submit_local.py --config jobs/configs/demo.yaml --run runs/try

does what ``ray job submit --working-dir . -- python jobs/pipeline.py …`` does on a cluster, on a
head of its own that ends with it. Ctrl-C, SIGTERM and SIGHUP stop the job, then the head.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _private_head import private_head

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ROOT = Path(__file__).resolve().parent.parent
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGENT_START_TIMEOUT_S = 90
JOB_STOP_TIMEOUT_S = 30
EXIT_INTERRUPTED = 130


def main(argv: list[str]) -> int:
    """Run one launcher as a job on a private head.

    Args:
        argv: The command line without the program's name.

    Returns:
        The exit code of the launcher; 130 when interrupted, 1 when Ray failed.
    """
    parser = argparse.ArgumentParser(description="Runs a launcher as a Ray job on a private head.")
    parser.add_argument("--script", default="jobs/pipeline.py", metavar="PATH", help="the launcher")
    parser.add_argument("--config", required=True, type=Path, metavar="PATH")
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

    # The job runs in a copy of the product, where a relative path would lead into Ray's own files.
    run = args.run if "://" in args.run else str(Path(args.run).absolute())
    arguments = ["--config", str(args.config.absolute()), f"run={run}", *args.overrides]
    for signal_number in INTERRUPTS:
        signal.signal(signal_number, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="drift-ray-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            with private_head(folder) as client:
                try:
                    return run_job(
                        client,
                        entrypoint=shlex.join([sys.executable, args.script, *arguments]),
                        submission_id=submission_id(run),
                        working_dir=copy_product(folder / "product", args.extras),
                    )
                finally:
                    _ignore_interrupts()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (RuntimeError, OSError) as error:  # what Ray's client raises when the head is lost
        print(f"error: {error}", file=sys.stderr)
        return 1


def submission_id(run: str) -> str:
    """The id of the job: named after the run, in the characters that Ray allows."""
    name = run.rstrip("/").rsplit("/", 1)[-1]
    return "drift-ray-" + re.sub(r"[^A-Za-z0-9_.-]+", "-", name)


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
    client: JobSubmissionClient, *, entrypoint: str, submission_id: str, working_dir: Path
) -> int:
    """Submit a job, follow its log to its end and print its outcome.

    Returns:
        The exit code of the entrypoint; 130 when interrupted, 1 when it never ran.
    """
    from ray.job_submission import JobStatus

    job = _submit(
        client,
        entrypoint=entrypoint,
        submission_id=submission_id,
        runtime_env={"working_dir": str(working_dir)},
    )
    print(f"job {job}: {entrypoint}", flush=True)
    asyncio.run(_follow(client, job))
    details = client.get_job_info(job)
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


async def _follow(client: JobSubmissionClient, job: str) -> None:
    """Print the job's log until the job ends; an interrupt stops the job and its log goes on."""
    loop = asyncio.get_running_loop()
    following = asyncio.current_task()
    assert following is not None  # a coroutine runs in a task
    stopping = False

    def stop() -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            print(f"job {job}: stopping", file=sys.stderr, flush=True)
            client.stop_job(job)
            loop.call_later(JOB_STOP_TIMEOUT_S, following.cancel)

    for signal_number in INTERRUPTS:
        loop.add_signal_handler(signal_number, stop)
    with contextlib.suppress(asyncio.CancelledError):
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)


def _ignore_interrupts() -> None:
    for signal_number in INTERRUPTS:
        signal.signal(signal_number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
