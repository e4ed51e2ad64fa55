"""Environments react off the engine's thread, each within a deadline.

An environment may grade, run code or wait for a service. None of that may hold up the engine, and
one that never returns may cost its own trajectory only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from drift_ray.rollout.episode import Reaction


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ruling:
    """What came of one call: a reaction, an exception, or neither when it ran out of time."""

    key: str
    reaction: Reaction | None = None
    error: Exception | None = None


@dataclass(slots=True)
class _Call:
    key: str
    judge: Callable[[], Reaction]
    started_s: float | None = None
    abandoned: bool = False
    """Its time is up and another thread serves in place of the one that runs it."""


class Referee:
    """A pool of threads that forgets a call, and replaces its thread, once its time is up.

    Python cannot end a thread: a call that hangs keeps its thread until the process ends, so the
    threads are daemons and a late answer is dropped.

    Args:
        num_threads: Calls that run at the same time.
        deadline_s: Seconds a call may run, not counting its wait for a thread.
    """

    def __init__(self, *, num_threads: int, deadline_s: float) -> None:
        self._max_threads = num_threads
        self.deadline_s = deadline_s
        self._waiting: SimpleQueue[_Call] = SimpleQueue()
        self._answers: SimpleQueue[tuple[_Call, Any]] = SimpleQueue()
        self._pending: dict[str, _Call] = {}
        self._num_threads = 0

    def submit(self, key: str, judge: Callable[[], Reaction]) -> None:
        """Queue a call; ``key`` must not be pending."""
        call = _Call(key=key, judge=judge)
        self._pending[key] = call
        self._waiting.put(call)
        if self._num_threads < min(self._max_threads, len(self._pending)):
            self._start_thread()

    def poll(self, timeout_s: float = 0.0) -> list[Ruling]:
        """Rulings that are ready; waits up to ``timeout_s`` for the first one."""
        rulings = []
        wait_s = min(timeout_s, self.deadline_s) if self._pending else 0.0
        while answer := self._next_answer(wait_s):
            wait_s = 0.0
            call, outcome = answer
            # A late answer belongs to a call that has been ruled on.
            if self._pending.get(call.key) is call:
                del self._pending[call.key]
                rulings.append(_ruling(call.key, outcome))
        return rulings + self._time_out()

    def _next_answer(self, wait_s: float) -> tuple[_Call, Any] | None:
        try:
            return self._answers.get(block=wait_s > 0, timeout=wait_s or None)
        except Empty:
            return None

    def _time_out(self) -> list[Ruling]:
        # Calls start in the order of their submission, so the first that has time left ends it.
        latest_s = time.monotonic() - self.deadline_s
        late = []
        for call in self._pending.values():
            if call.started_s is None or call.started_s > latest_s:
                break
            late.append(call)
        for call in late:
            call.abandoned = True
            del self._pending[call.key]
            self._num_threads -= 1
            self._start_thread()
        return [Ruling(key=call.key) for call in late]

    def _start_thread(self) -> None:
        self._num_threads += 1
        threading.Thread(target=self._serve, daemon=True, name="referee").start()

    def _serve(self) -> None:
        while True:
            call = self._waiting.get()
            call.started_s = time.monotonic()
            try:
                outcome: Any = call.judge()
            except Exception as error:
                outcome = error
            self._answers.put((call, outcome))
            if call.abandoned:
                return


def _ruling(key: str, outcome: Reaction | Exception) -> Ruling:
    if isinstance(outcome, Exception):
        return Ruling(key=key, error=outcome)
    return Ruling(key=key, reaction=outcome)
