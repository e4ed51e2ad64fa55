"""The parent's handle on one grading process: start it, exchange messages, kill it."""

from __future__ import annotations

import json
import os
import pickle
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from drift_ray.tasks.grading_worker import HEADER

# The child finds modules where this process does, a job's working directory included.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from drift_ray.tasks.grading_worker import main; main(sys.argv[2], int(sys.argv[3]))"
)


class GradingProcess:
    """One child. Used by one thread, which must live as long: the kernel ties the two.

    Args:
        choice: The grader's canonical text.
    """

    def __init__(self, choice: str) -> None:
        # No preexec_fn: it would run Python in a fork of a process full of threads.
        self._child = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps(sys.path), choice, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            # Numeric libraries would start a thread a core in every child.
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._requests = self._child.stdin
        self._reply_pipe = self._child.stdout
        self._replies = self._reply_pipe.fileno()
        self._poll = select.poll()
        self._poll.register(self._replies, select.POLLIN)
        self._buffer = bytearray()

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._child.pid

    def send(self, batch: Sequence[tuple[str, str]]) -> None:
        """Send pairs of answer and gold.

        Raises:
            BrokenPipeError: The child is dead.
        """
        body = pickle.dumps(batch)
        data = memoryview(HEADER.pack(len(body)) + body)
        while data:
            data = data[self._requests.write(data) :]

    def receive(self, timeout_s: float) -> tuple[Any, ...]:
        """The next reply.

        Raises:
            TimeoutError: None came in time.
            EOFError: The child is dead.
        """
        end = time.monotonic() + timeout_s
        while (message := self._next_message()) is None:
            left_ms = max(0.0, end - time.monotonic()) * 1e3
            if not self._poll.poll(left_ms):
                raise TimeoutError
            data = os.read(self._replies, 1 << 16)
            if not data:
                raise EOFError
            self._buffer += data
        return message

    def kill(self) -> str:
        """End the child at once, if it lives, and say how it ended."""
        self._child.kill()
        code = self._child.wait()
        self._requests.close()
        self._reply_pipe.close()
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"

    def interrupt(self) -> None:
        """End the child at once, from any thread; its own thread finds out by ``receive``."""
        self._child.kill()

    def _next_message(self) -> tuple[Any, ...] | None:
        if len(self._buffer) < HEADER.size:
            return None
        end = HEADER.size + HEADER.unpack_from(self._buffer)[0]
        if len(self._buffer) < end:
            return None
        message: tuple[Any, ...] = pickle.loads(memoryview(self._buffer)[HEADER.size : end])
        del self._buffer[:end]
        return message
