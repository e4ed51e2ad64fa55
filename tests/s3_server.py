"""An S3 server on loopback, and what may go wrong between it and its clients."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "drift-ray-tests"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}
"""What clients of the server need besides ``AWS_ENDPOINT_URL_S3``."""
Environ = dict[str, Any]
Fault = Literal["503", "slow", "cut before", "cut after", "cut within"]
"""``cut before``: the server never sees the request. ``cut after``: it has done what was asked, and
the answer is lost. ``cut within``: half of the answer arrives."""
SLOW_S = 0.1


class FaultyS3:
    """A WSGI application: moto's S3, with a fault where ``choose`` wants one.

    Attributes:
        choose: Says by a request's method and path what goes wrong with it; None: nothing.
        log: Methods and paths of all requests.
    """

    def __init__(self) -> None:
        self._s3 = DomainDispatcherApplication(create_backend_app)
        self.url = ""
        self.choose: Callable[[str, str], Fault | None] = lambda method, path: None
        self.log: list[tuple[str, str]] = []

    def __call__(self, environ: Environ, start_response: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.log.append((method, path))
        fault = self.choose(method, path)
        if fault == "503":
            body = b"<Error><Code>SlowDown</Code><Message>Reduce your rate.</Message></Error>"
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [body]
        if fault == "slow":
            time.sleep(SLOW_S)
        if fault == "cut before":
            return _cut(environ, start_response)
        if fault in ("cut after", "cut within"):
            body = b"".join(self._s3(environ, lambda *_: None))
            return _cut(
                environ, start_response, body[: len(body) // 2] if fault == "cut within" else b""
            )
        return self._s3(environ, start_response)

    def times(self, number: int, fault: Fault, method: str, part_of_path: str) -> None:
        """Let the next ``number`` requests of a kind go wrong."""
        left = [number]

        def choose(asked: str, path: str) -> Fault | None:
            if left[0] and asked == method and part_of_path in path:
                left[0] -= 1
                return fault
            return None

        self.choose = choose


def _cut(environ: Environ, start_response: Any, body: bytes = b"") -> list[bytes]:
    """Send the beginning of an answer, then nothing more."""
    connection: socket.socket = environ["werkzeug.socket"]
    if body:
        start = f"HTTP/1.1 200 OK\r\nContent-Length: {2 * len(body)}\r\n\r\n"
        connection.sendall(start.encode() + body)
    connection.shutdown(socket.SHUT_RDWR)
    start_response("200 OK", [("Content-Length", "0")])  # to nobody
    return []


@contextmanager
def faulty_s3() -> Iterator[FaultyS3]:
    """Serve until the block ends."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = FaultyS3()
    server = make_server("127.0.0.1", 0, application, threaded=True)
    application.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield application
    finally:
        server.shutdown()
        thread.join()
