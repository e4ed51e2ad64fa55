"""Whether the run directory takes, gives back and lets go of what is written."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from drift_ray.config import RunConfig
from drift_ray.doctor.devices import GIB
from drift_ray.doctor.findings import Finding, error, ok, warning
from drift_ray.store import RunStore

_LEAST_FREE = 2 * GIB


def check_storage(config: RunConfig) -> Iterator[Finding]:
    """Write, replace, read and delete a file beside those of the run.

    Raises:
        StorageError: One of them fails; says which and what to do.
    """
    store = RunStore(config.run)
    new = list(_missing_folders(Path(store.root))) if store.is_local else []
    folder = f".doctor-{uuid.uuid4().hex}"
    probe = f"{folder}/probe.json"
    try:
        for content in ("first", "second"):  # the second one replaces a file that is there
            store.write_json(probe, content)
            if (found := store.read_json(probe)) != content:
                yield error(
                    "storage",
                    f"{store} gave {found!r} back where {content!r} had been written.",
                    "Use storage that is consistent: no cache that lags behind.",
                )
                return
    finally:
        store.remove(folder)
        for each in new:  # a run directory that was not there shall not be there now
            if each.is_dir() and not any(each.iterdir()):
                each.rmdir()
    if store.exists(probe):
        yield error(
            "storage", f"{store} still has what was deleted.", "Allow this process to delete."
        )
        return
    yield ok("storage", f"{store}: write, replace, read and delete work")
    if store.is_local:
        yield from local_findings(store, shutil.disk_usage(_first_folder(Path(store.root))).free)


def local_findings(store: RunStore, num_free: int) -> Iterator[Finding]:
    """What matters of a run directory on this machine with so many free bytes."""
    if num_free < _LEAST_FREE:
        yield warning(
            "free space",
            f"{num_free / GIB:.1f} GiB are free at {store}.",
            "Free some, or choose another run directory (run=…): checkpoints take 12 bytes a "
            "parameter each.",
        )
    else:
        yield ok("free space", f"{num_free / GIB:.1f} GiB")
    if os.environ.get("RAY_ADDRESS"):
        yield warning(
            "shared storage",
            f"{store} is a path, and RAY_ADDRESS names a cluster.",
            "Make sure that every node sees the same folder there, or use an object store.",
        )


def _missing_folders(path: Path) -> Iterator[Path]:
    """The folder and those above it that are not there, the deepest first."""
    for each in (path, *path.parents):
        if each.exists():
            return
        yield each


def _first_folder(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.exists())
