"""Submit a launcher as a job to the Ray head of a cluster, from anywhere that reaches it.

    export RAY_API_SERVER_ADDRESS=http://<head>:8265
    python jobs/submit.py --config jobs/configs/demo.yaml --run s3://bucket/runs/first

does what ``ray job submit --working-dir . -- python jobs/pipeline.py …`` does, and before that asks
what can be known here: whether the configuration is in order, whether the head is there, takes the
token and runs this version of Ray, and whether a job of this run is at work already. Submitting
again goes on with the run. Ctrl-C stops the job; without it, the job needs this process no more.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from _submission import copy_product, next_submission_id, parse, run_job

from drift_ray.config_file import BUILTIN, load_config
from drift_ray.errors import EXIT_INTERRUPTED, ClusterError, ConfigError, DriftRayError
from drift_ray.joining import check_job_server

ADDRESS = "RAY_API_SERVER_ADDRESS"


def main(argv: list[str]) -> int:
    """Submit one launcher and follow it to its end.

    Args:
        argv: The command line without the program's name.

    Returns:
        The exit code of the launcher; that of the error where it could not be submitted; 130 when
        it was stopped, 1 when the connection was lost.
    """
    parser = argparse.ArgumentParser(description="Submits a launcher as a job to a Ray head.")
    parser.add_argument("--address", metavar="URL", help=f"http://HOST:8265; else {ADDRESS}")
    args = parse(parser, argv)
    try:
        address = checked_address(args.address)
        check_run(args.config, args.run, args.overrides)
        check_job_server(address)
        return submit(address, args.script, args.config, args.run, args.overrides, args.extras)
    except DriftRayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (RuntimeError, OSError) as error:  # what Ray's client raises when the head is lost
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the job is followed
        print("interrupted; `ray job list` tells whether there is a job", file=sys.stderr)
        return EXIT_INTERRUPTED


def checked_address(given: str | None) -> str:
    """The head's, by the command line or the environment.

    Raises:
        ClusterError: Neither names one.
    """
    if address := given or os.environ.get(ADDRESS):
        return address
    raise ClusterError(
        "No head is named to submit to.",
        f"Give --address http://HOST:8265 or set {ADDRESS}; `make job-demo` needs none.",
    )


def check_run(config: str, run: str, overrides: Sequence[str]) -> None:
    """See that the configuration is in order and its run directory no path of this machine.

    Raises:
        ConfigError: Says what is wrong.
    """
    run = load_config(config, [f"run={run}", *overrides]).run
    if "://" not in run and not Path(run).is_absolute():
        raise ConfigError(
            f"The run directory {run} is a relative path: it would lie in the folder in which Ray "
            "unpacks the job.",
            "Name a URL (s3://…), or the absolute path of a disk that every node shares.",
        )


def submit(
    address: str,
    script: str,
    config: str,
    run: str,
    overrides: Sequence[str],
    extras: Sequence[Path],
) -> int:
    """Upload the product with the configuration, submit, and follow; returns the exit code."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(address)
    with tempfile.TemporaryDirectory(prefix="drift-ray-") as folder:
        product = copy_product(Path(folder) / "product", extras)
        if not config.startswith(BUILTIN):
            shutil.copy(config, product / "submitted.yaml")
            config = "submitted.yaml"
        arguments = ["--config", config, f"run={run}", *overrides]
        return run_job(
            client,
            entrypoint=shlex.join(["python", script, *arguments]),
            submission_id=next_submission_id(client, run),
            working_dir=product,
            stop_on=[signal.SIGINT],
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
