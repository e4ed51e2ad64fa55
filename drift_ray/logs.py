"""The log of a command: lines to read, or JSON for whoever collects the logs of a cluster."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

from drift_ray.store import hide_login

LOG_FORMAT_VARIABLE = "DRIFT_RAY_LOG_FORMAT"
"""``json``: one object a line; anything else: text."""
_context: ContextVar[dict[str, str]] = ContextVar("drift_ray.logs")


@contextmanager
def log_context(**fields: str) -> Iterator[None]:
    """Log lines of this block carry these fields, for example ``run`` and ``stage``."""
    token = _context.set(_context.get({}) | fields)
    try:
        yield
    finally:
        _context.reset(token)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the block's fields and the replica."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            **_context.get({}),
            "message": record.getMessage(),
        }
        if (replica := getattr(record, "replica", None)) is not None:
            line["replica"] = replica
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return hide_login(json.dumps(line))


class TextFormatter(logging.Formatter):
    """One line to read."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record, and its exception."""
        return hide_login(super().format(record))


def log_to_stderr() -> None:
    """Show warnings of all, and what this package does: a line for every part, for one."""
    handler = logging.StreamHandler()
    if os.environ.get(LOG_FORMAT_VARIABLE) == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(TextFormatter("%(asctime)s %(name)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("drift_ray").setLevel(logging.INFO)
