"""Many episodes on one engine, without barriers.

Each episode goes on the moment its own turn is sampled and judged; the engine's batch is whatever
turns happen to be in flight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from drift_ray.rollout.episode import Completion, Episode, Request
from drift_ray.types import Trajectory


class Engine(Protocol):
    """Samples turns. Batches continuously whatever was submitted."""

    def submit(self, request: Request) -> None:
        """Queue one turn."""
        ...

    def step(self) -> list[Completion]:
        """Advance all queued turns a little; return those that are finished."""
        ...


def play(engine: Engine, episodes: Iterable[Episode]) -> Iterator[Trajectory]:
    """Play episodes to their end and yield each trajectory as it completes."""
    in_flight: dict[str, Episode] = {}

    def advance(episode: Episode) -> Iterator[Trajectory]:
        if episode.done:
            yield episode.trajectory()
            return
        request = episode.request()
        in_flight[request.request_id] = episode
        engine.submit(request)

    for episode in episodes:
        yield from advance(episode)
    while in_flight:
        for completion in engine.step():
            episode = in_flight.pop(completion.request_id)
            episode.accept(completion)
            yield from advance(episode)
