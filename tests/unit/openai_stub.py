"""A server on loopback that speaks as much of the OpenAI API as a test wants it to."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "nano"
Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def models(*names: str, **more: Any) -> Answer:
    return Answer({"object": "list", "data": [{"id": name, **more} for name in names]})


def failure(status: int, message: str = "no", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer({"error": {"message": message, "code": status}}, status, named)


def sampled_ids(body: Body) -> list[int]:
    """What a test server "samples": a function of the request alone."""
    return [(body.get("seed", 0) + position) % 280 for position in range(3)]


def exact(body: Body) -> Answer:
    """As vLLM answers."""
    ids = sampled_ids(body)
    return text_of(
        "not to be looked at",
        token_ids=ids,
        logprobs={"token_logprobs": [-0.5 - token / 1024 for token in ids]},
    )


def text_of(text: str, finish_reason: str | None = "stop", **more: Any) -> Answer:
    choice = {"index": 0, "text": text, "finish_reason": finish_reason, **more}
    return Answer({"object": "text_completion", "model": MODEL, "choices": [choice]})


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no news; what else goes wrong, its test will notice."""


class Stub:
    """Answers on a free port until the test ends.

    Args:
        complete: Answers ``/completions``; called on a thread of the connection's own.
        listed: Answers ``/models``.
    """

    def __init__(
        self, complete: Callable[[Body], Answer] = exact, listed: Answer | None = None
    ) -> None:
        self.bodies: list[Body] = []
        """Every request to ``/completions``, in order of arrival."""
        self.keys: set[str | None] = set()
        self.complete = complete
        self.listed = listed or models(MODEL)
        self._connections: list[socket.socket] = []
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for connection in self._connections:
            with contextlib.suppress(OSError):  # closed by the client
                connection.shutdown(socket.SHUT_RDWR)

    def _handler(stub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                stub._connections.append(self.connection)

            def do_GET(self) -> None:
                stub.keys.add(self.headers["Authorization"])
                self._send(stub.listed if self.path == "/v1/models" else failure(404))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.bodies.append(body)
                self._send(stub.complete(body) if self.path == "/v1/completions" else failure(404))

            def _send(self, answer: Answer) -> None:
                body = json.dumps(answer.body).encode()
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
