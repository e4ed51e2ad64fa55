"""Every error a user can cause, each with what is wrong, where, what to do, and an exit code.

``str(error)`` is a complete message. All of them pickle, so they cross Ray's process borders.
"""

from __future__ import annotations

from typing import Literal


class DriftRayError(Exception):
    """Base of all errors of this package.

    Args:
        message: What is wrong and where (file, row, field, value).
        hint: What to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.hint}" if self.hint else self.message


class ConfigError(DriftRayError, ValueError):
    """The configuration is wrong: unknown key, value out of bounds, unreadable file."""

    exit_code = 2


class TaskError(DriftRayError, ValueError):
    """The prompts are wrong: empty set, missing field, duplicate id."""

    exit_code = 3


class ModelError(DriftRayError):
    """A model is missing, incomplete or cannot be loaded."""

    exit_code = 4


class EngineRequestError(DriftRayError):
    """The engine refuses one request; other requests are not affected."""

    exit_code = 9


class EngineLostError(DriftRayError):
    """An engine failed as a whole or hangs: its replica is replaced, its groups played again."""

    exit_code = 8


class DataError(DriftRayError):
    """A file in the run directory is truncated, foreign or of another schema."""

    exit_code = 5


class FingerprintError(DriftRayError):
    """The run directory was made with other settings; appending would mix samples."""

    exit_code = 6


class StorageError(DriftRayError, OSError):
    """The run directory cannot be written or read: no space, no permission, no network."""

    exit_code = 7

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.errno = self.strerror = None  # OSError reads two arguments as these


class StageError(DriftRayError, RuntimeError):
    """A stage cannot start or go on: its input is missing, a worker died for good."""

    exit_code = 8


class ClusterError(StageError):
    """A Ray cluster cannot be joined: no head, a token it refuses, another version of Ray."""

    exit_code = 11


GradingCause = Literal["deadline", "crash", "exception"]


class GradingError(DriftRayError, RuntimeError):
    """One answer could not be graded; it is neither right nor wrong, and never scored.

    Args:
        message: What happened, and to which answer.
        hint: What to do about it.
        cause: The grader took longer than its deadline, its process died, or it raised.
        trace: Python traceback of the exception; empty without one.
    """

    exit_code = 10

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        cause: GradingCause = "exception",
        trace: str = "",
    ) -> None:
        super().__init__(message, hint)
        self.cause = cause
        self.trace = trace


EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells expect of SIGINT."""
