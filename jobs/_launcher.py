"""What the launchers beside this file share: their command line."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import NoReturn

from drift_ray.cli import main


def launch(command: str) -> NoReturn:
    """Run ``drift-ray COMMAND`` with the arguments of this process and end it with its exit code.

    Args:
        command: A sub-command of ``drift-ray`` that takes a configuration and overrides.
    """
    # A head that a script started in its background ignores SIGINT, and so would its jobs: stopping
    # one would end in SIGKILL.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=f"Runs `drift-ray {command}` as a Ray job.")
    parser.add_argument("--config", required=True, metavar="PATH", help="a YAML configuration")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for example run=s3://…")
    args = parser.parse_intermixed_args()
    sys.exit(main([command, args.config, *args.overrides]))
