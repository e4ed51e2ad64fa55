"""The thread that owns a replica's engine: parts go in, outcomes of their episodes come out.

Several parts are in flight at once, so the engine never drains between them: the last slow
trajectories of one part share the batch with the first ones of the next.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from drift_ray.rollout.episode import Episode
from drift_ray.rollout.player import Engine, Player
from drift_ray.rollout.referee import Referee
from drift_ray.types import Failure, Trajectory


@dataclass(slots=True)
class PartOutcome:
    """All that became of the trajectories of one part."""

    trajectories: list[Trajectory] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    duration_s: float = 0.0


@dataclass(slots=True, eq=False)
class _Part:
    start: Callable[[], Iterable[Episode]]
    """Makes its episodes; called on the engine's thread."""
    future: Future[PartOutcome]
    num_left: int = 0
    started_s: float = 0.0
    outcome: PartOutcome = field(default_factory=PartOutcome)


class EngineLoop:
    """Plays parts concurrently on one engine.

    Args:
        engine: Owned by the loop's thread from now on.
        referee: Runs the environments.
    """

    def __init__(self, engine: Engine, referee: Referee) -> None:
        self._player = Player(engine, referee)
        self._inbox: SimpleQueue[_Part] = SimpleQueue()
        self._part_of: dict[Episode, _Part] = {}
        self._broken: BaseException | None = None
        threading.Thread(target=self._run, daemon=True, name="engine").start()

    def submit(self, start: Callable[[], Iterable[Episode]]) -> Future[PartOutcome]:
        """Queue a part. From any thread; ``start`` runs on the engine's."""
        part = _Part(start=start, future=Future())
        self._inbox.put(part)
        if self._broken:
            part.future.set_exception(self._broken)
        return part.future

    def _run(self) -> None:
        part: _Part | None = None
        try:
            while True:
                while part := self._next_part():
                    self._begin(part)
                for episode, failure in self._player.advance():
                    self._settle(episode, failure)
        except BaseException as error:
            # The engine is lost, and every part in flight with it: its replica has to go.
            self._broken = error
            waiting = {*self._part_of.values(), *([part] if part else [])}
            while not self._inbox.empty():
                waiting.add(self._inbox.get())
            for lost in waiting:
                lost.future.set_exception(error)

    def _next_part(self) -> _Part | None:
        try:
            return self._inbox.get(block=not self._player.num_in_flight)
        except Empty:
            return None

    def _begin(self, part: _Part) -> None:
        part.started_s = time.monotonic()
        episodes = list(part.start())
        part.num_left = len(episodes)
        for episode in episodes:
            self._part_of[episode] = part
            self._player.add(episode)

    def _settle(self, episode: Episode, failure: Failure | None) -> None:
        part = self._part_of.pop(episode)
        if failure and (again := episode.again()):
            self._part_of[again] = part
            self._player.add(again)
            return
        if failure:
            part.outcome.failures.append(failure)
        else:
            part.outcome.trajectories.append(episode.trajectory())
        part.num_left -= 1
        if part.num_left == 0:
            part.outcome.duration_s = time.monotonic() - part.started_s
            part.future.set_result(part.outcome)
