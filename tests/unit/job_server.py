"""A small server on loopback that answers as the job server of a Ray head does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata

RAY = metadata.version("ray")


@dataclass(slots=True)
class Head:
    """What it answers; may be changed while it serves."""

    url: str = ""
    status: int = 200
    body: str = field(default_factory=lambda: json.dumps({"ray_version": RAY}))
    token: str | None = None
    """The one that it takes; None: it asks for none."""
    location: str | None = None
    """Where it sends those who ask."""
    is_http: bool = True
    """Otherwise it answers what no browser understands."""
    asked: list[str] = field(default_factory=list)
    """Paths, in order."""


@contextmanager
def job_server() -> Iterator[Head]:
    """Serve until the block ends."""
    head = Head()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            head.asked.append(self.path)
            if not head.is_http:
                self.wfile.write(b"\0\0\x18\4\0\r\n")
                return
            shown = self.headers.get("Authorization")
            status = head.status
            if head.token is not None and shown != f"Bearer {head.token}":
                status = 403 if shown else 401
            self.send_response(302 if head.location else status)
            if head.location:
                self.send_header("Location", head.location)
            self.end_headers()
            self.wfile.write(head.body.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Not into the output of the tests."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        head.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield head
        finally:
            server.shutdown()
            thread.join()
