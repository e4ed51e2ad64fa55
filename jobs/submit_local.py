"""Try a launcher as a Ray job on this machine: private head, Jobs API, log, outcome, nothing left.

    python jobs/submit_local.py --config jobs/configs/demo.yaml --run runs/try

does what ``ray job submit --working-dir . -- python jobs/pipeline.py …`` does on a cluster, on a
head of its own that ends with it. Ctrl-C, SIGTERM and SIGHUP stop the job, then the head.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import tempfile
from pathlib import Path

from _private_head import private_head
from _submission import copy_product, parse, run_job, submission_id

from drift_ray.config_file import BUILTIN
from drift_ray.errors import EXIT_INTERRUPTED

INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(argv: list[str]) -> int:
    """Run one launcher as a job on a private head.

    Args:
        argv: The command line without the program's name.

    Returns:
        The exit code of the launcher; 130 when interrupted, 1 when Ray failed.
    """
    parser = argparse.ArgumentParser(description="Runs a launcher as a Ray job on a private head.")
    args = parse(parser, argv)

    # The job runs in a copy of the product, where a relative path would lead into Ray's own files.
    run = args.run if "://" in args.run else str(Path(args.run).absolute())
    is_shipped = args.config.startswith(BUILTIN)
    config = args.config if is_shipped else str(Path(args.config).absolute())
    arguments = ["--config", config, f"run={run}", *args.overrides]
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
                        stop_on=INTERRUPTS,
                    )
                finally:
                    _ignore_interrupts()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (RuntimeError, OSError) as error:  # what Ray's client raises when the head is lost
        print(f"error: {error}", file=sys.stderr)
        return 1


def _ignore_interrupts() -> None:
    for signal_number in INTERRUPTS:
        signal.signal(signal_number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
