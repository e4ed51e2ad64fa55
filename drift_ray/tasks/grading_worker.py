"""The child side of a grading pool: a supervisor, and the grading process that it forks.

The supervisor is a fresh interpreter, so nothing of an engine is in it. It loads and warms up what
is slow to load, once; a grading process that hangs or crashes is then replaced in milliseconds.
Neither outlives the pool: the kernel kills them with their parent, whatever they are doing.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import select
import signal
import struct
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from drift_ray.errors import ConfigError
from drift_ray.grader_config import MathGraderConfig, parse_grader
from drift_ray.tasks.graders import Grader, get_grader
from drift_ray.tasks.graders.mathematics import warm_up

HEADER = struct.Struct("<I")
"""Before every message: the length of its pickle in bytes."""
READY, REFUSED = "ready", "refused"
"""First item of the first reply: the grader is loaded, or cannot be."""
BEGUN, VERDICT, EXCEPTION, END = "begun", "verdict", "exception", "end"
"""First item of a reply: a batch begins; a case is done; the grader raised; the batch is over."""
TAKE_BACK = "take back"
"""Sent in place of a batch: do not begin the rest of the running one."""
REVIVE = "revive"
"""Sent in place of a batch, once the grading process is known to be dead: fork another."""
STOP_SIGNAL = signal.SIGUSR1
"""Tells the supervisor to kill the grading process."""

MATH_MEMORY_BYTES = 4 * 2**30
"""Address space of a process that evaluates what a model wrote: it must not fill the machine."""
_PR_SET_PDEATHSIG = 1


def main(choice: str, parent_pid: int, endings: int) -> None:
    """Supervise grading processes, one after the other, until the parent has gone.

    Args:
        choice: The grader's canonical text.
        parent_pid: The process that must be alive.
        endings: File descriptor that is told, a line each, how a grading process ended.
    """
    _die_with(parent_pid)
    # Ctrl-C in a terminal reaches children too; the parent decides when they end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, STOP_SIGNAL})
    requests, replies = _take_over_pipes()
    try:
        # Loaded before the fork is only what is known to have no threads.
        if isinstance(parse_grader(choice), MathGraderConfig):
            resource.setrlimit(resource.RLIMIT_AS, (MATH_MEMORY_BYTES, MATH_MEMORY_BYTES))
            warm_up()
    except ConfigError as error:
        _send(replies, (REFUSED, error.message, error.hint))
        return
    supervisor = os.getpid()
    while True:
        child = os.fork()
        if child == 0:
            os.close(endings)
            _grade_until_end(choice, supervisor, requests, replies)
        os.write(endings, f"{_await_ending(child)}\n".encode())
        while (message := _receive(requests)) != REVIVE:
            if message is None:
                return
        # Meant for the process that is dead.
        signal.sigtimedwait({STOP_SIGNAL}, 0)


def _await_ending(child: int) -> str:
    while True:
        if signal.sigwait({signal.SIGCHLD, STOP_SIGNAL}) == STOP_SIGNAL:
            os.kill(child, signal.SIGKILL)
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return f"signal {-code}" if code < 0 else f"exit code {code}"


def _grade_until_end(choice: str, supervisor: int, requests: int, replies: int) -> NoReturn:
    """The whole life of a grading process."""
    try:
        _die_with(supervisor)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD, STOP_SIGNAL})
        try:
            grade = get_grader(choice)
        except ConfigError as error:
            _send(replies, (REFUSED, error.message, error.hint))
            os._exit(0)
        _send(replies, (READY, os.getpid()))
        while (batch := _receive(requests)) is not None:
            if batch != TAKE_BACK:
                _grade_batch(grade, batch, requests, replies)
    except BaseException:  # what is not reported here would run on as a second supervisor
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _grade_batch(
    grade: Grader, batch: Sequence[tuple[str, str]], requests: int, replies: int
) -> None:
    _send(replies, (BEGUN,))
    for index, (answer, gold) in enumerate(batch):
        # Any message in the middle of a batch takes its rest back.
        if index and select.select([requests], [], [], 0)[0]:
            break
        # Every reply goes out before the next case begins: the first case without one is the
        # case that hangs or crashes.
        _send(replies, _reply(grade, answer, gold))
    _send(replies, (END,))


def _reply(grade: Grader, answer: str, gold: str) -> tuple[Any, ...]:
    try:
        verdict = grade(answer, gold)
        return VERDICT, bool(verdict.correct), bool(verdict.valid), str(verdict.normalized)
    except Exception as error:
        return EXCEPTION, f"{type(error).__name__}: {error}", traceback.format_exc()


def _die_with(parent_pid: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before the line above
        os._exit(1)


def _take_over_pipes() -> tuple[int, int]:
    """Keep both pipes for messages: what a grader prints goes to standard error."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    return requests, replies


def _send(replies: int, message: tuple[Any, ...]) -> None:
    body = pickle.dumps(message)
    data = memoryview(HEADER.pack(len(body)) + body)
    while data:
        data = data[os.write(replies, data) :]


def _receive(requests: int) -> Any:
    """The next message; None when the parent has closed the pipe."""
    header = _read(requests, HEADER.size)
    if header is None:
        return None
    body = _read(requests, HEADER.unpack(header)[0])
    return None if body is None else pickle.loads(body)


def _read(requests: int, size: int) -> bytes | None:
    """Exactly ``size`` bytes; None at the end of the pipe."""
    parts = []
    while size:
        part = os.read(requests, size)
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
