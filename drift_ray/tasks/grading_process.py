"""The parent's handle on a grading process and its successors."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

from drift_ray.tasks.grading_channel import Channel
from drift_ray.tasks.grading_worker import ASK

STOP_TIMEOUT_S = 10.0
"""For the supervisor to kill a process and to say how it ended."""

# The child finds modules where this process does, a job's working directory included.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from drift_ray.tasks.grading_worker import main; main(sys.argv[2], int(sys.argv[3]))"
)


class SupervisorEnded(Exception):
    """The supervisor is dead: there is nobody left to start processes."""


class GradingProcess:
    """A supervisor and the grading process that it holds at present, if any.

    Used by one thread, which must live as long.

    Args:
        choice: The grader's canonical text.

    Raises:
        OSError: The machine has no room for another process.
    """

    def __init__(self, choice: str) -> None:
        self._channel: Channel | None = None
        # Packets: a command and its reply are whole, or not there.
        self._control, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        boot = [sys.executable, "-c", _BOOT, json.dumps(sys.path)]
        try:
            # No preexec_fn: it would run Python in a fork of a process full of threads.
            self._supervisor = subprocess.Popen(
                [*boot, choice, str(os.getpid())],
                stdin=theirs.fileno(),
                # Numeric libraries would start a thread a core in every child.
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        except OSError:
            self._control.close()
            raise
        finally:
            theirs.close()

    @property
    def channel(self) -> Channel:
        """To the grading process that was started last."""
        assert self._channel is not None
        return self._channel

    def start(self, timeout_s: float) -> None:
        """Let the supervisor fork a grading process; the one before it must be stopped.

        Raises:
            TimeoutError: The supervisor is not ready in time.
            SupervisorEnded: It is dead.
        """
        self._ask(timeout_s)
        try:
            # Without the flag, whatever this process starts would hold the channel open.
            _, fds, *_ = socket.recv_fds(self._control, 1, 1, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            fds = []
        if not fds:
            raise SupervisorEnded
        self._channel = Channel(socket.socket(fileno=fds[0]))

    def stop(self) -> str:
        """Kill the grading process, if it still lives, and say how it ended.

        Raises:
            TimeoutError: The supervisor does not react.
            SupervisorEnded: It is dead, and so is the process.
        """
        if self._channel is None:
            raise SupervisorEnded
        self._channel.close()
        self._ask(STOP_TIMEOUT_S)
        try:
            ending = self._control.recv(64).decode()
        except ConnectionError:
            ending = ""
        if not ending:
            raise SupervisorEnded
        return ending

    def interrupt(self) -> None:
        """Kill both at once, from any thread; their own thread finds out by its channel."""
        self._supervisor.kill()

    def close(self) -> None:
        """Kill both and free what they hold."""
        self._supervisor.kill()
        self._supervisor.wait()
        self._control.close()
        if self._channel is not None:
            self._channel.close()

    def _ask(self, timeout_s: float) -> None:
        self._control.settimeout(timeout_s)
        try:
            self._control.send(ASK)
        except ConnectionError:
            raise SupervisorEnded from None
