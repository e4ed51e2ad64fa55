"""Submitting a job to a cluster: what is refused before anything is sent, and a job's name."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from drift_ray.errors import ClusterError, ConfigError, StageError
from tests.unit.job_server import Head, job_server
from tests.unit.scripted import write_config

JOBS = Path(__file__).resolve().parents[2] / "jobs"
RUN = "s3://bucket/runs/first"


@pytest.fixture
def head() -> Iterator[Head]:
    with job_server() as answers:
        yield answers


@pytest.fixture
def launchers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The modules of ``jobs/`` can be imported, as those that run there do."""
    monkeypatch.syspath_prepend(str(JOBS))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    yield
    for name in ("submit", "_submission", "_launcher"):
        sys.modules.pop(name, None)


Refusal = Callable[..., tuple[int, str]]


@pytest.fixture
def refusal(launchers: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Submits with these arguments; the exit code, and what stands on stderr."""
    config = write_config(tmp_path)

    def submit(*arguments: str, run: str = RUN) -> tuple[int, str]:
        from submit import main

        code = main(["--config", str(config), "--run", run, *arguments])
        return code, capsys.readouterr().err

    return submit


def test_a_head_that_is_not_there(refusal: Refusal) -> None:
    code, said = refusal("--address", "http://127.0.0.1:1")
    assert code == ClusterError.exit_code
    assert said.startswith("error: No Ray head answers at http://127.0.0.1:1")
    assert "→" in said


def test_no_head_is_named(refusal: Refusal) -> None:
    code, said = refusal()
    assert code == ClusterError.exit_code
    assert "RAY_API_SERVER_ADDRESS" in said


def test_a_refused_token_and_another_ray(
    refusal: Refusal, head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", head.url)
    head.token = "secret"
    code, said = refusal()
    assert code == ClusterError.exit_code
    assert "asks for a token" in said
    head.token, head.body = None, json.dumps({"ray_version": "2.9.3"})
    code, said = refusal()
    assert code == ClusterError.exit_code
    assert "runs Ray 2.9.3" in said


@pytest.mark.parametrize(
    ("run", "override", "what"),
    [
        (RUN, "training.epochs=2", "num_epochs"),
        (RUN, "seed=-1", "seed"),
        ("runs/first", "seed=1", "relative path"),
    ],
)
def test_a_wrong_configuration_is_not_sent(
    refusal: Refusal, head: Head, run: str, override: str, what: str
) -> None:
    code, said = refusal("--address", head.url, override, run=run)
    assert code == ConfigError.exit_code
    assert what in said
    assert not head.asked


@dataclass
class Status:
    is_over: bool

    def is_terminal(self) -> bool:
        return self.is_over


@dataclass
class Job:
    submission_id: str | None
    status: Status
    entrypoint: str


class Client:
    """Knows some jobs."""

    def __init__(self, *jobs: tuple[str | None, bool], run: str = RUN) -> None:
        command = f"python jobs/pipeline.py --config a.yaml 'run={run}' seed=1"
        self._jobs = [Job(name, Status(is_over), command) for name, is_over in jobs]

    def list_jobs(self) -> Sequence[Job]:
        return self._jobs


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ([], "drift-ray-first"),
        ([(None, True), ("drift-ray-first-steps", True), ("other", True)], "drift-ray-first"),
        ([("drift-ray-first", True)], "drift-ray-first-again-2"),
        (
            [("drift-ray-first-again-10", True), ("drift-ray-first", True)],
            "drift-ray-first-again-2",
        ),
    ],
)
def test_a_job_is_named_after_its_run(
    jobs: list[tuple[str | None, bool]], expected: str, launchers: None
) -> None:
    from _submission import next_submission_id

    client: Any = Client(*jobs)
    assert next_submission_id(client, f"{RUN}/") == expected


def test_a_run_has_one_job_at_a_time_whoever_submitted_it(launchers: None) -> None:
    from _submission import next_submission_id

    client: Any = Client(("drift-ray-first", True), ("raysubmit_7", False))
    with pytest.raises(StageError, match="raysubmit_7 is still at work"):
        next_submission_id(client, f"{RUN}/")
    others: Any = Client(("drift-ray-first", False), run="s3://elsewhere/runs/first")
    assert next_submission_id(others, RUN) == "drift-ray-first-again-2"


def test_a_job_can_be_interrupted_whatever_started_its_head(
    launchers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from _launcher import launch

    found: list[object] = []

    def main(arguments: list[str]) -> int:
        found.append(signal.getsignal(signal.SIGINT))
        return 7

    monkeypatch.setattr("_launcher.main", main)
    monkeypatch.setattr(sys, "argv", ["weigh.py", "--config", "a.yaml"])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as ended:
            launch("weigh")
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 7
    assert found == [signal.default_int_handler]
