"""What is said of a cluster that cannot be joined; a small server on loopback is the head."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from drift_ray.errors import ClusterError
from drift_ray.joining import check_head, check_job_server, refuse_other_version, token
from tests.unit.job_server import RAY, Head, job_server

TOKEN = "0123abcd"


@pytest.fixture
def head() -> Iterator[Head]:
    with job_server() as answers:
        yield answers


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


def test_a_token_that_hides_the_right_one(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    head.token = TOKEN
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    error = refused(head.url)
    assert "does not take the token in RAY_AUTH_TOKEN." in error.message
    assert "unset it" in error.hint


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


def test_another_port_of_the_head(head: Head) -> None:
    head.is_http = False
    assert "takes no Ray jobs: its answer is not one of Ray's" in refused(head.url).message


def test_the_token_goes_nowhere_else(head: Head) -> None:
    with job_server() as other:
        head.location = f"{other.url}/api/version"
        assert "takes no Ray jobs" in refused(head.url).message
        assert other.asked == []


@pytest.mark.parametrize("url", ["head:8265", "ray://head:10001", "http://head:port", ""])
def test_no_address_of_a_job_server(url: str) -> None:
    assert "RAY_API_SERVER_ADDRESS" in refused(url).hint


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


class Asking(grpc.GenericRpcHandler):
    """A head's own port: everybody needs the token."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        shown = dict(details.invocation_metadata).get("authorization")

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if shown != f"Bearer {TOKEN}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def asking() -> Iterator[int]:
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads, handlers=[Asking()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield port
        server.stop(grace=None).wait()


def test_a_head_that_takes_the_token(asking: int) -> None:
    for address in (f"127.0.0.1:{asking}", "auto"):
        check_head(address)


def test_a_head_that_does_not(asking: int, shown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown.write_text("another")
    with pytest.raises(ClusterError, match=f"does not take the token in {shown}"):
        check_head(f"127.0.0.1:{asking}")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ClusterError, match="asks for a token"):
        check_head(f"127.0.0.1:{asking}")


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
