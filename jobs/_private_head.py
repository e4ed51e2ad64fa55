"""A Ray head of one's own on this machine, gone without a trace when its context ends."""

from __future__ import annotations

import ctypes
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

# Logical: small actors share a core well, and Ray Data stalls when no CPU is left beside them.
NUM_CPUS = max(8, os.cpu_count() or 1)
START_TIMEOUT_S = 90
STOP_TIMEOUT_S = 30


class HeadError(RuntimeError):
    """The head did not start."""


@contextmanager
def private_head(folder: Path) -> Iterator[JobSubmissionClient]:
    """Start a head that shares nothing with another Ray on this machine.

    It has free ports, its own temporary folder and its own token: Ray listens beyond the loopback
    interface, and who reaches a head without a token may run code. Sets this process's Ray
    environment, so call it before anything imports Ray.

    Args:
        folder: A new folder with a short path (Ray's sockets lie in it: 107 bytes at most).

    Yields:
        A client of the head's Jobs API.

    Raises:
        HeadError: The head ended or did not answer in time; with the end of its log.
    """
    _adopt_orphans()
    os.environ.update(_ray_environment(folder))
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "PYTHONDONTWRITEBYTECODE"):
        os.environ.pop(name, None)

    gcs_port, dashboard_port, agent_port, client_port = _free_ports(4)
    log = folder / "head.log"
    with log.open("wb") as log_file:
        head = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("ray")),
                *("start", "--head", "--block", "--disable-usage-stats"),
                f"--num-cpus={NUM_CPUS}",
                f"--temp-dir={folder / 'ray'}",
                f"--port={gcs_port}",
                "--dashboard-host=127.0.0.1",
                f"--dashboard-port={dashboard_port}",
                f"--dashboard-agent-listen-port={agent_port}",
                f"--ray-client-server-port={client_port}",
                *("--min-worker-port=0", "--max-worker-port=0"),  # any free port
            ],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the job; the head goes after it
        )
    try:
        yield _connect(head, f"http://127.0.0.1:{dashboard_port}", log)
    finally:
        _stop(head)


def _adopt_orphans() -> None:
    """Become the parent of what a dying head leaves behind, so that ``_stop`` can find it."""
    set_child_subreaper = 36  # PR_SET_CHILD_SUBREAPER of <linux/prctl.h>
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def _ray_environment(folder: Path) -> dict[str, str]:
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    return {
        # `python` of an entrypoint is the one that runs this, as it is in an image.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # A stopped job ends as after Ctrl-C, with time to close its engines.
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": "20",
        # The job has ended before its head: do not wait for Ray's own detached actors.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_worker_niceness": "0",
    }


def _free_ports(count: int) -> list[int]:
    """Distinct ports that are free now; all are held until the last is found."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("", 0))
        return [sock.getsockname()[1] for sock in sockets]


def _connect(head: subprocess.Popen[bytes], address: str, log: Path) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            return JobSubmissionClient(address)
        except ConnectionError:
            if head.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
                raise HeadError(f"the private Ray head did not start:\n{tail}") from None
        time.sleep(0.2)


def _stop(head: subprocess.Popen[bytes]) -> None:
    """End the head as it likes it; then end those of its descendants that outlive it."""
    descendants = psutil.Process().children(recursive=True)
    head.terminate()
    try:
        head.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        head.kill()
        head.wait()
    _, alive = psutil.wait_procs(descendants, timeout=5)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=5)
