"""The parent's handle on one grading process: start it, exchange messages, stop and revive it."""

from __future__ import annotations

import json
import os
import pickle
import select
import subprocess
import sys
import time
from typing import Any

from drift_ray.tasks.grading_worker import HEADER, REVIVE, STOP_SIGNAL

STOP_TIMEOUT_S = 10.0
"""For the supervisor to report the end of a process that it was told to kill."""

# The child finds modules where this process does, a job's working directory included.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from drift_ray.tasks.grading_worker import main; "
    "main(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))"
)


class ProcessEnded(Exception):
    """The grading process is dead; the message says how it ended."""


class SupervisorEnded(ProcessEnded):
    """Its supervisor is dead, too: there is nothing left to revive."""


class GradingProcess:
    """A supervisor and its grading process. Used by one thread, which must live as long.

    Args:
        choice: The grader's canonical text.

    Raises:
        OSError: The machine has no room for another process.
    """

    def __init__(self, choice: str) -> None:
        self._endings, endings = os.pipe()
        pipe = subprocess.PIPE
        boot = [sys.executable, "-c", _BOOT, json.dumps(sys.path)]
        try:
            # No preexec_fn: it would run Python in a fork of a process full of threads.
            self._supervisor = subprocess.Popen(
                [*boot, choice, str(os.getpid()), str(endings)],
                stdin=pipe,
                stdout=pipe,
                bufsize=0,
                pass_fds=[endings],
                # Numeric libraries would start a thread a core in every child.
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        except OSError:
            os.close(self._endings)
            raise
        finally:
            os.close(endings)
        assert self._supervisor.stdin is not None
        assert self._supervisor.stdout is not None
        self._requests = self._supervisor.stdin
        self._replies = self._supervisor.stdout
        self._buffer = bytearray()
        self._poll = select.poll()
        for source in (self._replies.fileno(), self._endings):
            self._poll.register(source, select.POLLIN)

    def send(self, message: Any) -> None:
        """Send a batch, or what stands in place of one.

        Raises:
            ProcessEnded: The process died before.
        """
        if select.select([self._endings], [], [], 0)[0]:
            raise self._ending()
        body = pickle.dumps(message)
        data = memoryview(HEADER.pack(len(body)) + body)
        try:
            while data:
                data = data[self._requests.write(data) :]
        except BrokenPipeError:
            raise SupervisorEnded("its supervisor died") from None

    def receive(self, timeout_s: float) -> tuple[Any, ...]:
        """The next reply.

        Raises:
            TimeoutError: None came in time.
            ProcessEnded: The process died and left no further reply.
        """
        end = time.monotonic() + timeout_s
        while (message := self._next_message()) is None:
            left_ms = max(0.0, end - time.monotonic()) * 1e3
            ready = {source for source, _ in self._poll.poll(left_ms)}
            if not ready:
                raise TimeoutError
            data = b""
            if self._replies.fileno() in ready:
                data = os.read(self._replies.fileno(), 1 << 16)
                self._buffer += data
            # What it said before it died comes first.
            if not data:
                raise self._ending()
        return message

    def stop(self) -> None:
        """Kill the grading process, not the supervisor, and wait for its end.

        Raises:
            ProcessEnded: Always.
            TimeoutError: The supervisor does not react.
        """
        self._supervisor.send_signal(STOP_SIGNAL)
        if not select.select([self._endings], [], [], STOP_TIMEOUT_S)[0]:
            raise TimeoutError
        raise self._ending()

    def revive(self) -> None:
        """Let the supervisor fork another grading process in place of the dead one.

        Raises:
            SupervisorEnded: It is dead itself.
        """
        while select.select([self._replies], [], [], 0)[0] and os.read(
            self._replies.fileno(), 1 << 16
        ):
            pass
        self._buffer.clear()
        self.send(REVIVE)

    def interrupt(self) -> None:
        """Kill both at once, from any thread; their own thread finds out by ``receive``."""
        self._supervisor.kill()

    def close(self) -> None:
        """Kill both and free what they hold."""
        self._supervisor.kill()
        self._supervisor.wait()
        self._requests.close()
        self._replies.close()
        os.close(self._endings)

    def _ending(self) -> ProcessEnded:
        # A whole line: it is written at once and far shorter than a pipe's buffer.
        line = os.read(self._endings, 64).decode().strip()
        return ProcessEnded(line) if line else SupervisorEnded("its supervisor died")

    def _next_message(self) -> tuple[Any, ...] | None:
        if len(self._buffer) < HEADER.size:
            return None
        end = HEADER.size + HEADER.unpack_from(self._buffer)[0]
        if len(self._buffer) < end:
            return None
        message: tuple[Any, ...] = pickle.loads(bytes(self._buffer[HEADER.size : end]))
        del self._buffer[:end]
        return message
