"""Environments off the engine's thread: in time, too late, or with an error."""

from __future__ import annotations

import threading

from drift_ray.rollout.episode import Opening
from drift_ray.rollout.referee import Referee, Ruling

REACTION = Opening(messages=())


def rulings(referee: Referee, count: int) -> dict[str, Ruling]:
    found: dict[str, Ruling] = {}
    while len(found) < count:
        for ruling in referee.poll(timeout_s=10.0):
            assert ruling.key not in found
            found[ruling.key] = ruling
    return found


def test_calls_run_at_the_same_time() -> None:
    referee = Referee(num_threads=4, deadline_s=60.0)
    together = threading.Barrier(4)

    def call() -> Opening:
        together.wait(timeout=30)  # raises unless four calls are here at once
        return REACTION

    for index in range(8):
        referee.submit(str(index), call)
    found = rulings(referee, 8)
    assert all(ruling.reaction is REACTION for ruling in found.values())


def test_an_error_is_a_ruling_of_its_own_call() -> None:
    referee = Referee(num_threads=2, deadline_s=60.0)

    def fail() -> Opening:
        raise ValueError("no such word")

    referee.submit("bad", fail)
    referee.submit("good", lambda: REACTION)
    found = rulings(referee, 2)
    assert str(found["bad"].error) == "no such word"
    assert found["good"].reaction is REACTION


def test_a_call_that_hangs_costs_its_own_key_only_and_its_late_answer_is_dropped() -> None:
    referee = Referee(num_threads=1, deadline_s=0.05)
    release, ended = threading.Event(), threading.Event()

    def hang() -> Opening:
        release.wait(timeout=60)
        ended.set()
        return REACTION

    referee.submit("hangs", hang)
    (ruling,) = rulings(referee, 1).values()
    assert (ruling.key, ruling.reaction, ruling.error) == ("hangs", None, None)
    # Another thread took its place, and the same key may be tried again.
    referee.submit("hangs", lambda: REACTION)
    assert rulings(referee, 1)["hangs"].reaction is REACTION
    release.set()
    assert ended.wait(timeout=30)
    referee.submit("next", lambda: REACTION)
    assert list(rulings(referee, 1)) == ["next"]


def test_waiting_for_a_thread_does_not_count() -> None:
    referee = Referee(num_threads=1, deadline_s=0.3)
    for index in range(20):
        referee.submit(str(index), lambda: threading.Event().wait(0.03) or REACTION)
    assert all(ruling.reaction is REACTION for ruling in rulings(referee, 20).values())


def test_nothing_pending_returns_at_once() -> None:
    assert Referee(num_threads=1, deadline_s=60.0).poll(timeout_s=3600.0) == []
