"""``outcome.json``: what became of the last command that brought a run up to date.

A job's log goes with its cluster, the run directory stays: it says by itself whether the run is
done, failed, and why, or was stopped.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from drift_ray.errors import EXIT_INTERRUPTED, DataError, DriftRayError, StorageError
from drift_ray.store import OUTCOME_FILE, RunStore, hide_login

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a command, or what it does now."""

    state: str
    """``running`` (also after a kill, which nobody can record), ``done``, ``failed`` or
    ``interrupted``."""
    stages: list[str]
    """What the command was to bring up to date."""
    step: str | None
    """At work, or where it ended; None where it had to do none."""
    error: str | None
    exit_code: int | None
    """Of ``drift-ray``; None while it runs."""
    driver: str
    """Host and process id."""
    began_s: float
    time_s: float
    """When this was written, in seconds since 1970."""


@contextmanager
def recorded(store: RunStore, stages: Iterable[str]) -> Iterator[Callable[[str], None]]:
    """Tell the run directory what becomes of the block, which calls what it gets at each step."""
    now = time.time()
    outcome = Outcome(
        state="running",
        stages=sorted(stages),
        step=None,
        error=None,
        exit_code=None,
        driver=f"{platform.node()}:{os.getpid()}",
        began_s=now,
        time_s=now,
    )

    def at(step: str) -> None:
        write(step=step)

    def write(**changes: Any) -> None:
        nonlocal outcome
        outcome = replace(outcome, **changes, time_s=time.time())
        store.write_json(OUTCOME_FILE, asdict(outcome))

    write()
    try:
        yield at
    except BaseException as error:
        try:
            write(**_verdict(error))
        except StorageError as reason:  # what went wrong first is the error to show
            logger.warning("The outcome is not recorded: %s", reason)
        raise
    write(state="done", exit_code=0)


def _verdict(error: BaseException) -> dict[str, Any]:
    if isinstance(error, DriftRayError):
        text, code = str(error), error.exit_code
    elif isinstance(error, Exception):
        text, code = f"{type(error).__name__}: {error}", 1
    else:  # Ctrl-C, or Ray's handler of SIGTERM
        ended = error.code if isinstance(error, SystemExit) else EXIT_INTERRUPTED
        return {"state": "interrupted", "exit_code": ended if isinstance(ended, int) else 1}
    return {"state": "failed", "error": hide_login(text), "exit_code": code}


def read_outcome(store: RunStore) -> Outcome | None:
    """What became of the last command of this run; None where none has begun.

    Raises:
        DataError: The file is damaged.
    """
    if not store.exists(OUTCOME_FILE):
        return None
    hint = "Delete it: the next command writes it anew."
    raw: Any = store.read_json(OUTCOME_FILE, hint)
    try:
        return Outcome(**raw)
    except TypeError as error:
        where = store.path(OUTCOME_FILE)
        raise DataError(f"{where} is not an outcome of this version: {error}.", hint) from None
