"""Step metrics in the run's ``metrics.jsonl``: one line a step, however often it was repeated."""

from __future__ import annotations

import json
import time
from typing import Any

from drift_ray.store import CHECKPOINTS, METRICS_FILE, RunStore

STAGE = "training"
_TAIL_BYTES = 8192


class MetricLog:
    """Buffers the lines of rank 0; the only writer of the file while training runs."""

    def __init__(self, store: RunStore, digest: str, name: str = METRICS_FILE) -> None:
        """Log the training with this digest into this file; lines of other trainings stay."""
        self._store = store
        self._name = name
        self._digest = digest
        self._lines: list[dict[str, Any]] = []
        self._flushed_at: float | None = None

    def add(self, metrics: dict[str, Any]) -> None:
        """Note a step; it reaches the file about once a second, if that is local."""
        if self._flushed_at is None:
            self._drop_from(metrics["step"])
            self._flushed_at = time.monotonic()
        self._lines.append({"stage": STAGE, "digest": self._digest, **metrics})
        if time.monotonic() - self._flushed_at >= flush_interval_s(self._store):
            self.flush()

    def flush(self) -> None:
        """Write what is buffered."""
        if self._lines:
            self._store.append_metrics(self._lines, self._name)
        self._lines = []
        self._flushed_at = time.monotonic()

    def _drop_from(self, first_step: int) -> None:
        """Drop this training's lines of steps that come again."""
        if not self._store.exists(self._name):
            return
        text = self._store.fs.cat_file(self._store.path(self._name))
        kept = [
            line
            for line in text.splitlines(keepends=True)
            # A worker killed while it wrote leaves half a line.
            if (record := _parse(line)) is not None
            and not (
                record.get("stage") == STAGE
                and record["digest"] == self._digest
                and record["step"] >= first_step
            )
        ]
        if len(kept) < len(text.splitlines()):
            self._store.write_bytes(self._name, b"".join(kept))


def log_name(digest: str, *, beside_rollouts: bool) -> str:
    """The file that a training logs into: one of its own while another stage writes beside it."""
    return f"{CHECKPOINTS}/{digest}/{METRICS_FILE}" if beside_rollouts else METRICS_FILE


def publish_metrics(store: RunStore, digest: str) -> None:
    """Move the lines of a training beside which others wrote to where all others are."""
    name = log_name(digest, beside_rollouts=True)
    if store.exists(name):
        log = MetricLog(store, digest)
        for line in map(_parse, store.fs.cat_file(store.path(name)).splitlines()):
            if line is not None:
                log.add(line)
        log.flush()
        store.remove(name)


def read_metrics(store: RunStore) -> list[dict[str, Any]]:
    """All whole lines of the run's metrics."""
    if not store.exists(METRICS_FILE):
        return []
    lines = store.fs.cat_file(store.path(METRICS_FILE)).splitlines()
    return [record for line in lines if (record := _parse(line)) is not None]


def flush_interval_s(store: RunStore) -> float:
    """Remote files cannot be appended to: there, every flush writes the whole file again."""
    return 1.0 if store.is_local else 30.0


def latest_metrics(store: RunStore, digest: str, name: str = METRICS_FILE) -> dict[str, Any] | None:
    """The newest line of the training with this digest, or None; cheap enough to poll."""
    if not store.exists(name):
        return None
    tail = store.fs.cat_file(store.path(name), start=-_TAIL_BYTES)
    for line in reversed(tail.splitlines()):
        record = _parse(line)
        if record and record.get("stage") == STAGE and record.get("digest") == digest:
            return record
    return None


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
