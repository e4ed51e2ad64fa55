"""Messages between the pool and one grading process, over a socket that nobody else holds."""

from __future__ import annotations

import pickle
import select
import socket
import struct
import time
from typing import Any

_HEADER = struct.Struct("<I")
_MIN_WAIT_S = 1e-3
"""A timeout of 0 would mean another kind of socket."""


class ChannelClosed(Exception):
    """The other end is gone, with no whole message left."""


class Channel:
    """One end of a stream of pickled messages, each after its length in bytes.

    A stream serves one process from its first to its last message, so what a process leaves half
    written or half read when it is killed is lost with it, and confuses no successor.

    Args:
        end: A connected stream socket; the channel closes it.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._buffer = bytearray()

    def send(self, message: Any, timeout_s: float | None = None) -> None:
        """Send a message of any size.

        Raises:
            TimeoutError: The other end did not take all of it in time; nothing more can be sent.
            ChannelClosed: The other end is gone.
        """
        body = pickle.dumps(message)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.sendall(_HEADER.pack(len(body)) + body)
        except ConnectionError:
            raise ChannelClosed from None

    def receive(self, timeout_s: float | None = None) -> Any:
        """The next message; those that were sent before the other end closed come first.

        Raises:
            TimeoutError: None came in time. What came of it is kept for the next call.
            ChannelClosed: None will come.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while (size := self._message_size()) is None:
            left_s = None if end is None else max(_MIN_WAIT_S, end - time.monotonic())
            try:
                self._socket.settimeout(left_s)
                data = self._socket.recv(1 << 16)
            except ConnectionError:
                raise ChannelClosed from None
            if not data:
                raise ChannelClosed
            self._buffer += data
        message = pickle.loads(bytes(self._buffer[_HEADER.size : size]))
        del self._buffer[:size]
        return message

    def has_input(self) -> bool:
        """Whether something has come that was not received yet."""
        return bool(self._buffer or select.select([self._socket], [], [], 0)[0])

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def _message_size(self) -> int | None:
        """Bytes of the next message with its header; None while it is not whole."""
        if len(self._buffer) < _HEADER.size:
            return None
        size: int = _HEADER.size + _HEADER.unpack_from(self._buffer)[0]
        return size if len(self._buffer) >= size else None
