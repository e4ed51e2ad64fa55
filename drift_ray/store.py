"""The run directory: the only place where the stages meet, on any fsspec URL.

Commit rule: a file appears under its final name whole or not at all. On a local disk that is
write, fsync, rename; on object stores a put is atomic by itself. Names are functions of the work,
so a crash, a retry or two attempts at once leave exactly one file.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from drift_ray.errors import DataError, StorageError
from drift_ray.schema import FAILURES_KEY, TRAJECTORY_SCHEMA, check_table

ROLLOUTS = "rollouts"
FAILURES = "failures"
WEIGHTS = "weights"
VERDICTS = "verdicts"
CHECKPOINTS = "checkpoints"
MODEL = "model"
EVALUATION = "evaluation"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
STATUS_FILE = "status.json"
SCALE_FILE = "scale.json"
OUTCOME_FILE = "outcome.json"
TOPUPS_FILE = "topups.json"
ROUNDS = "rounds"
ROUND_FILE = "round.json"

_URL_LOGIN = re.compile(r"(?<=://)[^/\s]+@")
_LONGEST_ERROR = 2000
_PART = re.compile(r"part-.+\.parquet")
# Drivers let through what these raise, which are no OSErrors.
_DRIVER_LIBRARIES = {"aiohttp", "azure", "botocore", "gcsfs", "google"}
# Enough to hide the latency of an object store.
_FOOTER_THREADS = 16


class RunStore:
    """Reads and writes one run directory. Names are relative, with ``/`` between their parts."""

    def __init__(self, url: str) -> None:
        """Open a run directory; nothing is created yet.

        Raises:
            StorageError: The URL's protocol is unknown or its driver is not installed.
        """
        try:
            self.fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise StorageError(
                f"Cannot open run directory {hide_login(url)!r}: {hide_login(str(error))}",
                "Use a path, or a URL whose protocol fsspec knows and has a driver for.",
            ) from None
        self.root = root.rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)
        # Local ones are absolute: other processes have other working directories.
        self.url = self.root if self.is_local else url

    def __str__(self) -> str:
        """The URL as it may be shown: without a login."""
        return hide_login(self.url)

    def path(self, name: str) -> str:
        """Full path of ``name`` inside the file system of this store."""
        return f"{self.root}/{name}"

    def subrun(self, name: str) -> RunStore:
        """A folder of this run that is a run directory itself; an empty name: this run."""
        return RunStore(f"{self.url.rstrip('/')}/{name}") if name else self

    def exists(self, name: str) -> bool:
        """Whether a committed file or folder of that name is there."""
        with self._storage_errors(name):
            return bool(self.fs.exists(self.path(name)))

    def parts(self, folder: str) -> list[str]:
        """Sorted names of the committed Parquet parts in ``folder``; empty if there are none."""
        # Not glob: the URL may hold characters that are special to it.
        with self._storage_errors(folder):
            path = self.path(folder)
            paths = self.fs.ls(path, detail=False) if self.fs.exists(path) else []
        names = sorted(path.rsplit("/", 1)[1] for path in paths)
        return [f"{folder}/{name}" for name in names if _PART.fullmatch(name)]

    def write_bytes(self, name: str, data: bytes) -> None:
        """Commit a file.

        Raises:
            StorageError: No space, no permission or no connection; what was there stays.
        """
        with self._storage_errors(name):
            if self.is_local:
                _write_local(Path(self.path(name)), data)
            else:
                self.fs.pipe_file(self.path(name), data)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Commit a table as one Parquet file; replaces what was there."""
        self.write_bytes(name, _parquet_bytes(table))

    def create_table(self, name: str, table: pa.Table) -> bool:
        """Commit a table as one Parquet file, unless there is one of that name: that one stays.

        Returns:
            Whether this call made the file.

        Raises:
            StorageError: See :meth:`write_bytes`.
        """
        data = _parquet_bytes(table)
        with self._storage_errors(name):
            try:
                if self.is_local:
                    _write_local(Path(self.path(name)), data, commit=_link)
                else:
                    self.fs.pipe_file(self.path(name), data, mode="create")
            except FileExistsError:
                return False
        return True

    def read_table(
        self, name: str, expected: pa.Schema, columns: list[str] | None = None
    ) -> pa.Table:
        """Read a part, whole or some columns.

        Raises:
            DataError: The file is truncated, foreign, newer than this code, or lacks a column.
        """
        with self._parquet(name) as file:
            check_table(file.schema_arrow, expected, self.path(name))
            return file.read(columns=columns)

    def check_parts(
        self, names: Sequence[str], expected: pa.Schema
    ) -> dict[str, dict[bytes, bytes]]:
        """Check that parts are whole, by their footers alone. Raises as :meth:`read_table`.

        Returns:
            The metadata of each part's schema, by name.
        """

        def check(name: str) -> dict[bytes, bytes]:
            with self._parquet(name) as file:
                check_table(file.schema_arrow, expected, self.path(name))
                return dict(file.schema_arrow.metadata)

        with ThreadPoolExecutor(_FOOTER_THREADS) as threads:
            return dict(zip(names, threads.map(check, names), strict=True))

    def failure_files(self, parts: Sequence[str]) -> list[str]:
        """Files of failed trajectories that rollout parts name. Raises as :meth:`read_table`."""
        metadata = self.check_parts(parts, TRAJECTORY_SCHEMA).values()
        return [each[FAILURES_KEY].decode() for each in metadata if FAILURES_KEY in each]

    def num_rows(self, names: Sequence[str]) -> int:
        """Rows of parts, by their footers alone. Raises as :meth:`read_table`."""

        def count(name: str) -> int:
            with self._parquet(name) as file:
                return int(file.metadata.num_rows)

        with ThreadPoolExecutor(_FOOTER_THREADS) as threads:
            return sum(threads.map(count, names))

    def write_json(self, name: str, value: Any) -> None:
        """Commit a JSON file."""
        self.write_bytes(name, (json.dumps(value, indent=2) + "\n").encode())

    def read_json(self, name: str, hint: str = "Restore the file.") -> Any:
        """Read a JSON file.

        Raises:
            DataError: It is not JSON; ``hint`` says what to do.
        """
        with self._storage_errors(name):
            data = self.fs.cat_file(self.path(name))
        try:
            return json.loads(data)
        except ValueError as error:
            raise DataError(f"{self.path(name)} is not valid JSON: {error}", hint) from None

    def has_digest(self, name: str, digest: str) -> bool:
        """Whether a JSON file is there that names this digest: the last file of a finished stage.

        Raises:
            DataError: It is not JSON.
        """
        hint = "Delete the file and run the same command again: it is made anew."
        content = self.read_json(name, hint) if self.exists(name) else None
        return isinstance(content, dict) and content.get("digest") == digest

    def append_metrics(self, records: list[dict[str, Any]], name: str = METRICS_FILE) -> None:
        """Append lines to ``metrics.jsonl``, or to a file of another name.

        One writer at a time: the driver, or the first training worker while training runs.
        """
        if not records:
            return
        lines = "".join(json.dumps(record) + "\n" for record in records).encode()
        path = self.path(name)
        with self._storage_errors(name):
            if self.is_local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                with open(path, "a+b") as file:
                    file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
                    # A writer that was killed leaves half a line.
                    file.write((b"" if file.read(1) in (b"", b"\n") else b"\n") + lines)
                return
            before = self.fs.cat_file(path) if self.exists(name) else b""
            self.fs.pipe_file(path, before + lines)

    def remove(self, name: str) -> None:
        """Delete a file or folder; nothing happens if it is not there."""
        with self._storage_errors(name):
            if self.fs.exists(self.path(name)):
                self.fs.rm(self.path(name), recursive=True)

    def upload_dir(self, local: Path, name: str) -> None:
        """Commit a folder: replaces what was there. The caller marks completeness by a last file.

        Raises:
            StorageError: See :meth:`write_bytes`.
        """
        self.remove(name)
        for file in sorted(path for path in local.rglob("*") if path.is_file()):
            target = f"{name}/{file.relative_to(local).as_posix()}"
            with self._storage_errors(target):
                if self.is_local:
                    _copy_local(file, Path(self.path(target)))
                else:
                    self.fs.put_file(str(file), self.path(target))

    def local_dir(self, name: str) -> Path:
        """A folder of the run as local files: itself, or a fresh download of a remote one.

        Raises:
            StorageError: There is no such folder, or it cannot be downloaded.
        """
        if not self.exists(name):
            raise StorageError(f"There is no folder {self.path(name)}.")
        if self.is_local:
            return Path(self.path(name))
        target = Path(tempfile.mkdtemp(prefix="drift_ray-"))
        with self._storage_errors(name):
            self.fs.get(self.path(name) + "/", str(target) + "/", recursive=True)
        return target

    @contextmanager
    def _parquet(self, name: str) -> Iterator[pq.ParquetFile]:
        with self._storage_errors(name), self.fs.open(self.path(name), "rb") as source:
            try:
                yield pq.ParquetFile(source)
            except (pa.ArrowException, EOFError, OSError, UnicodeDecodeError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # the disk or the network, not the bytes; Arrow sets no errno
                raise DataError(
                    f"{self.path(name)} is not a complete Parquet file ({error}).",
                    "Delete this file, then `drift-ray run` redoes what it held and nothing else.",
                ) from None

    @contextmanager
    def _storage_errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except Exception as error:
            library = type(error).__module__.partition(".")[0]
            if not isinstance(error, OSError) and library not in _DRIVER_LIBRARIES:
                raise
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                hint = "Free some space and run the same command again; what is committed stays."
                raise StorageError(f"No space left to write {self.path(name)}.", hint) from None
            if isinstance(error, FileExistsError | NotADirectoryError):
                raise StorageError(
                    f"{self.path(name)} cannot be: a part of its path is a file, not a folder.",
                    "Choose another run directory (run=…), or move that file away.",
                ) from None
            denied = isinstance(error, PermissionError) or "Credentials" in type(error).__name__
            raise StorageError(
                f"Storage failed at {self.path(name)}: {hide_login(str(error))}",
                "Give this process and all nodes credentials that may do this: environment "
                "variables, a profile, or an identity of the node."
                if denied and not self.is_local
                else "Check that the path is right, can be written and can be reached.",
            ) from error


def hide_login(text: str) -> str:
    """Replace the logins of all URLs in a text."""
    return _URL_LOGIN.sub("***@", text)


def recordable(text: str) -> str:
    """An error's text as it may stand in a run directory: no logins, and not without end.

    Those of Ray hold whole tracebacks.
    """
    return hide_login(text)[:_LONGEST_ERROR]


def _parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _link(temporary: Path, target: Path) -> None:
    """Give a file its final name, unless that is taken."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        # A mount without hard links: two attempts at the same instant would both succeed, the
        # second one replacing the first by the same work.
        if target.exists():
            raise FileExistsError(errno.EEXIST, "exists", str(target)) from None
        os.replace(temporary, target)


def _copy_local(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)
    with open(target, "rb+") as copy:
        os.fsync(copy.fileno())


def _write_local(
    target: Path, data: bytes, commit: Callable[[Path, Path], None] = os.replace
) -> None:
    """Write a file that appears whole: ``os.replace`` replaces what was there, ``_link`` not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A leading dot keeps half-written files out of every reader's glob.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        commit(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
