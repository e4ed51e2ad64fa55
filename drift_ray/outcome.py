"""``outcome.json``: what became of the last `run` or stage that began in a run directory.

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

from drift_ray.errors import DataError, DriftRayError, StorageError
from drift_ray.store import OUTCOME_FILE, RunStore, recordable

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandOutcome:
    """What became of a command, or what it does now."""

    state: str
    """``running`` (also after a kill, which nobody can record), ``done``, ``failed`` or
    ``interrupted``."""
    stages: list[str]
    """What the command was to bring up to date."""
    step: str | None
    """At work, or where it ended; a training beside the rollouts counts under the step at hand.
    None where there was nothing to do."""
    error: str | None
    driver: str
    """Host and process id."""
    began_s: float
    time_s: float
    """When this was written, in seconds since 1970."""


@contextmanager
def recorded(store: RunStore, stages: Iterable[str]) -> Iterator[Callable[[str], None]]:
    """Tell the run directory what becomes of the block, which calls what it gets at each step."""
    now = time.time()
    outcome = CommandOutcome(
        state="running",
        stages=list(stages),
        step=None,
        error=None,
        driver=f"{platform.node()}:{os.getpid()}",
        began_s=now,
        time_s=now,
    )

    def write(**changes: Any) -> None:
        nonlocal outcome
        outcome = replace(outcome, **changes, time_s=time.time())
        try:
            store.write_json(OUTCOME_FILE, asdict(outcome))
        except StorageError as reason:  # not worth a run
            logger.warning("The outcome is not recorded: %s", reason)

    write()
    try:
        yield lambda step: write(step=step)
    except Exception as error:
        text = (
            str(error) if isinstance(error, DriftRayError) else f"{type(error).__name__}: {error}"
        )
        write(state="failed", error=recordable(text))
        raise
    except BaseException:  # Ctrl-C, or Ray's handler of SIGTERM
        write(state="interrupted")
        raise
    write(state="done")


def read_outcome(store: RunStore) -> CommandOutcome | None:
    """What became of the last `run` or stage that began in this run; None where none has.

    Raises:
        DataError: The file is damaged.
    """
    if not store.exists(OUTCOME_FILE):
        return None
    hint = "Delete it: the next command writes it anew."
    raw: Any = store.read_json(OUTCOME_FILE, hint)
    try:
        return CommandOutcome(**raw)
    except TypeError as error:
        where = store.path(OUTCOME_FILE)
        raise DataError(f"{where} is not an outcome of this version: {error}.", hint) from None
