"""The child side of a grading pool: a supervisor, and the grading process that it forks.

The supervisor is a fresh interpreter, so nothing of an engine is in it. It loads and warms up what
is slow to load, once; a grading process that hangs or crashes is then replaced in milliseconds.
Neither outlives the pool: the kernel kills them with their parent, whatever they are doing.

Only the parent and one grading process hold that process's channel. Supervisor and parent have a
socket of their own, on which the parent asks and the supervisor answers.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from drift_ray.errors import ConfigError
from drift_ray.grader_config import MathGraderConfig, parse_grader
from drift_ray.tasks.graders import Grader, get_grader
from drift_ray.tasks.graders.mathematics import warm_up
from drift_ray.tasks.grading_channel import Channel, ChannelClosed

ASK = b"?"
"""To the supervisor, by turns: fork a grading process, answered by its channel; kill it, answered
by how it ended."""
READY, REFUSED = "ready", "refused"
"""First item of a grading process's first reply: the grader is loaded, or cannot be."""
BEGUN, VERDICT, EXCEPTION, END = "begun", "verdict", "exception", "end"
"""First item of a reply: a batch begins; a case is done; the grader raised; the batch is over."""
TAKE_BACK = "take back"
"""Sent in place of a batch: do not begin the rest of the running one."""

MATH_MEMORY_BYTES = 4 * 2**30
"""Address space of a process that evaluates what a model wrote: it must not fill the machine."""
_PR_SET_PDEATHSIG = 1


def main(choice: str, parent_pid: int) -> None:
    """Supervise grading processes, one after the other, until the parent has gone.

    Args:
        choice: The grader's canonical text.
        parent_pid: The process that must be alive.
    """
    _die_with(parent_pid)
    # Ctrl-C in a terminal reaches children too; the parent decides when they end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = _take_over_input()
    # Loaded before the fork is only what is known to have no threads.
    if isinstance(parse_grader(choice), MathGraderConfig):
        resource.setrlimit(resource.RLIMIT_AS, (MATH_MEMORY_BYTES, MATH_MEMORY_BYTES))
        with contextlib.suppress(ConfigError):  # the grading process says so
            warm_up()
    supervisor = os.getpid()
    while control.recv(1):
        near, far = socket.socketpair()
        child = os.fork()
        if child == 0:
            control.close()
            near.close()
            _grade_until_end(choice, supervisor, Channel(far))
        far.close()
        socket.send_fds(control, [ASK], [near.fileno()])
        near.close()
        if not control.recv(1):
            return
        control.send(_end(child).encode())


def _end(child: int) -> str:
    # It is not waited for before, so the id is still its own, dead or alive.
    os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _grade_until_end(choice: str, supervisor: int, channel: Channel) -> NoReturn:
    """The whole life of a grading process."""
    try:
        _die_with(supervisor)
        try:
            grade = get_grader(choice)
        except ConfigError as error:
            channel.send((REFUSED, error.message, error.hint))
            os._exit(0)
        channel.send((READY, os.getpid()))
        while True:
            batch = channel.receive()
            if batch != TAKE_BACK:
                _grade_batch(grade, batch, channel)
    except ChannelClosed:
        os._exit(0)
    except BaseException:  # what is not reported here would run on as a second supervisor
        traceback.print_exc()
    os._exit(1)


def _grade_batch(grade: Grader, batch: Sequence[tuple[str, str]], channel: Channel) -> None:
    channel.send((BEGUN,))
    for index, (answer, gold) in enumerate(batch):
        # Any message in the middle of a batch takes its rest back.
        if index and channel.has_input():
            break
        # Every reply goes out before the next case begins: the first case without one is the
        # case that hangs or crashes.
        channel.send(_reply(grade, answer, gold))
    channel.send((END,))


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


def _take_over_input() -> socket.socket:
    """Keep the socket for commands, and standard output for nothing: graders may print."""
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    return control
