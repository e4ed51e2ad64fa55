"""Messages arrive whole or not at all, and no wait is without an end."""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.tasks.grading_channel import Channel, ChannelClosed

LARGE = "π" * 3_000_000
"""Far more than a socket holds."""


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        yield near, far


@given(st.lists(st.one_of(st.text(), st.lists(st.integers())), max_size=5), st.data())
def test_messages_survive_any_cut(messages: list[object], data: st.DataObject) -> None:
    near, far = socket.socketpair()
    with near, far:
        for message in messages:
            Channel(near).send(message, 5.0)
        stream = far.recv(1 << 20) if messages else b""
        at = data.draw(st.integers(0, len(stream)))
        receiver, received = Channel(far), []
        for piece in (stream[:at], stream[at:]):
            near.sendall(piece)
            with suppress(TimeoutError):
                while True:
                    received.append(receiver.receive(0.0))
        assert received == messages


def test_a_large_message_crosses(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = map(Channel, ends)
    thread = threading.Thread(target=near.send, args=(LARGE,))
    thread.start()
    assert far.receive(30.0) == LARGE
    thread.join()


def test_nobody_waits_for_ever(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = map(Channel, ends)
    with pytest.raises(TimeoutError):
        near.send(LARGE, 0.05)
    with pytest.raises(TimeoutError):
        far.receive(0.05)  # only a part of it was sent
    assert far.has_input()


def test_what_was_sent_before_the_end_comes_first(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    near, far = map(Channel, ends)
    far.send("never read")  # which makes the end a reset
    near.send("last")
    ends[0].sendall(b"\xff" + pickle.dumps("cut short"))
    near.close()
    assert far.receive(5.0) == "last"
    for _ in range(2):
        with pytest.raises(ChannelClosed):
            far.receive(5.0)
    with pytest.raises(ChannelClosed):
        far.send("too late", 5.0)
