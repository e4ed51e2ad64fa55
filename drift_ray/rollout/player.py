"""Many episodes on one engine, without barriers.

Each episode goes on the moment its own turn is sampled and judged; the engine's batch is whatever
turns happen to be in flight, of whichever trajectory, prompt or part. New episodes may join at any
time.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator

from drift_ray.errors import EngineRequestError, GradingError
from drift_ray.rollout.episode import Episode
from drift_ray.rollout.protocol import Engine, Refusal
from drift_ray.rollout.referee import Referee, Ruling
from drift_ray.types import Failure, FailureCause

Outcome = tuple[Episode, Failure | None]
"""An episode that ended, and why if it could not be completed."""

_POLL_S = 0.1
"""How long to wait for an environment when the engine has nothing to do."""


class Player:
    """Drives episodes to their end on one engine. Not thread-safe: one thread owns it.

    Args:
        engine: Samples the turns.
        referee: Runs the environments.
    """

    def __init__(self, engine: Engine, referee: Referee) -> None:
        self._engine = engine
        self._referee = referee
        self._sampling: dict[str, Episode] = {}
        self._judging: dict[str, Episode] = {}
        self._num_opening = 0
        self._ended: list[Outcome] = []

    @property
    def num_in_flight(self) -> int:
        """Episodes that :meth:`advance` has not returned yet."""
        return len(self._sampling) + len(self._judging) + len(self._ended)

    @property
    def num_engaged(self) -> int:
        """Episodes that the engine works on or is about to: not those whose turn is judged."""
        return len(self._sampling) + self._num_opening

    def add(self, episode: Episode) -> None:
        """Let an episode join."""
        self._num_opening += 1
        self._judge(episode)

    def advance(self) -> list[Outcome]:
        """Do one step of everything; returns the episodes that ended."""
        wait_s = 0.0 if self._sampling or self._ended else _POLL_S
        for ruling in self._referee.poll(wait_s):
            self._apply(ruling)
        if self._sampling:
            for result in self._engine.step():
                episode = self._sampling.pop(result.request_id)
                if isinstance(result, Refusal):
                    self._refuse(episode, result.error)
                else:
                    episode.complete(result)
                    self._judge(episode)
        ended, self._ended = self._ended, []
        return ended

    def _judge(self, episode: Episode) -> None:
        self._judging[episode.key] = episode
        self._referee.submit(episode.key, episode.pending_call())

    def _apply(self, ruling: Ruling) -> None:
        episode = self._judging.pop(ruling.key)
        self._num_opening -= not episode.began
        if ruling.reaction is not None:
            episode.react(ruling.reaction)
            self._go_on(episode)
        elif isinstance(ruling.error, GradingError):
            late = ruling.error.cause == "deadline"
            cause = FailureCause.DEADLINE if late else FailureCause.GRADER
            self._end(episode, cause, str(ruling.error), ruling.error.trace)
        elif ruling.error is not None:
            message = f"{type(ruling.error).__name__}: {ruling.error}"
            self._fail(episode, FailureCause.ENVIRONMENT, message, ruling.error)
        else:
            message = f"no answer within {self._referee.deadline_s:g} s"
            self._fail(episode, FailureCause.DEADLINE, message)

    def _go_on(self, episode: Episode) -> None:
        if episode.never_began:
            message = "the first prompt leaves the policy no room in its context window"
            self._fail(episode, FailureCause.CONTEXT_WINDOW, message)
            return
        if episode.done:
            self._ended.append((episode, None))
            return
        request = episode.request()
        try:
            self._engine.submit(request)
        except EngineRequestError as error:
            self._refuse(episode, error)
        else:
            self._sampling[request.request_id] = episode

    def _refuse(self, episode: Episode, error: Exception) -> None:
        self._fail(episode, FailureCause.ENGINE, str(error), error)

    def _fail(
        self, episode: Episode, cause: FailureCause, message: str, error: Exception | None = None
    ) -> None:
        trace = "".join(traceback.format_exception(error)) if error else ""
        self._end(episode, cause, message, trace)

    def _end(self, episode: Episode, cause: FailureCause, message: str, trace: str) -> None:
        self._ended.append((episode, episode.failure(cause, message, trace)))


def play(engine: Engine, episodes: Iterable[Episode], referee: Referee) -> Iterator[Outcome]:
    """Play episodes to their end and yield each with its failure, if any, as it ends."""
    player = Player(engine, referee)
    for episode in episodes:
        player.add(episode)
    while player.num_in_flight:
        yield from player.advance()
