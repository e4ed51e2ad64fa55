"""What is said of a cluster that cannot be joined; a small server on loopback is the head."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import pytest

from drift_ray.errors import ClusterError
from drift_ray.joining import check_head, check_job_server, refuse_other_version, token

RAY = metadata.version("ray")
TOKEN = "0123abcd"


@dataclass(slots=True)
class Head:
    """Answers as Ray's dashboard does."""

    url: str = ""
    status: int = 200
    body: str = field(default_factory=lambda: json.dumps({"ray_version": RAY}))
    token: str | None = None
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def head() -> Iterator[Head]:
    answers = Head()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers.asked.append(self.path)
            shown = self.headers.get("Authorization")
            status = answers.status
            if answers.token is not None and shown != f"Bearer {answers.token}":
                status = 403 if shown else 401
            self.send_response(status)
            self.end_headers()
            self.wfile.write(answers.body.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Not into the output of the tests."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        answers.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield answers
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the token that this environment shows."""
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    return file


def refused(url: str) -> ClusterError:
    with pytest.raises(ClusterError) as caught:
        check_job_server(url)
    assert url in caught.value.message
    assert caught.value.hint
    assert TOKEN not in str(caught.value)
    return caught.value


def test_a_head_of_this_version_that_takes_the_token(head: Head) -> None:
    head.token = TOKEN
    check_job_server(head.url)
    check_job_server(f"{head.url}/")
    assert head.asked == ["/api/version"] * 2


def test_a_head_without_tokens(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    check_job_server(head.url)


def test_a_wrong_token(head: Head, shown: Path) -> None:
    head.token = "another"
    assert f"does not take the token in {shown}" in refused(head.url).message


def test_no_token_where_one_is_asked_for(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    head.token = TOKEN
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert "asks for a token" in refused(head.url).message


def test_another_version_of_ray(head: Head) -> None:
    head.body = json.dumps({"ray_version": "2.9.3"})
    error = refused(head.url)
    assert f"runs Ray 2.9.3, this environment Ray {RAY}" in error.message
    assert "ray[default]==2.9.3" in error.hint


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    error = refused(f"http://127.0.0.1:{port}")
    assert "No Ray head answers" in error.message
    assert "refused" in error.message


@pytest.mark.parametrize(
    ("status", "body"), [(200, "<html>"), (200, "[]"), (200, "{}"), (404, "{}"), (500, "")]
)
def test_another_kind_of_server(head: Head, status: int, body: str) -> None:
    head.status, head.body = status, body
    assert "takes no Ray jobs" in refused(head.url).message


@pytest.mark.parametrize("url", ["head:8265", "ray://head:10001", ""])
def test_no_address_of_a_job_server(url: str) -> None:
    assert "RAY_API_SERVER_ADDRESS" in refused(url).hint


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_where_a_head_listens(listening: int) -> None:
    for address in (f"127.0.0.1:{listening}", "auto"):
        check_head(address)


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("127.0.0.1:1", "No Ray head answers"),
        ("127.0.0.1", "no HOST:PORT"),
        ("head:port", "no HOST:PORT"),
        ("", "no HOST:PORT"),
        ("head:99999", "no HOST:PORT"),
        ("http://127.0.0.1:8265", "where jobs are submitted to"),
        ("ray://127.0.0.1:10001", "Ray Client"),
    ],
)
def test_where_no_head_listens(address: str, what: str) -> None:
    with pytest.raises(ClusterError, match=what) as caught:
        check_head(address)
    assert "RAY_ADDRESS" in str(caught.value)


@pytest.mark.parametrize("content", [" \n", None])
def test_no_token_to_show(content: str | None, shown: Path, listening: int) -> None:
    shown.unlink()
    if content is not None:
        shown.write_text(content)
    with pytest.raises(ClusterError, match="no token to show"):
        check_head(f"127.0.0.1:{listening}")


def test_where_the_token_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    assert token() == TOKEN
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the environment")
    assert token() == "of the environment"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert token() is None


def test_the_same_version_is_not_refused() -> None:
    refuse_other_version("head:6379", RAY)
