"""The thread that owns a replica's engine: groups go in, outcomes of their episodes come out.

Groups of any number of parts are under way at once, so the engine never drains between them. A few
more wait at its door, which hides the way to the driver and back.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from drift_ray.errors import DriftRayError, EngineLostError
from drift_ray.rollout.episode import Episode
from drift_ray.rollout.player import Player
from drift_ray.rollout.protocol import Engine
from drift_ray.rollout.referee import Referee
from drift_ray.rollout.work import Counts, GroupKey, GroupOutcome, Update
from drift_ray.types import Failure, FailureCause

Start = Callable[[], Sequence[Episode]]
"""Makes a group's episodes; called on the engine's thread."""

_MOST_AT_ONCE = 4
"""Trajectories under way at once, in multiples of what the engine works on: slow environments keep
many of them from the engine, and hanging ones must not draw in the whole prompt set."""
_WAITING_FRAC = 0.25
"""Trajectories that wait at the engine's door, as a share of what it works on."""
_PACE_S = 0.5
"""Finished groups are told of together, this far apart, unless the engine has nothing to do."""


class EngineLoop:
    """Plays groups concurrently on one engine.

    Args:
        engine: Owned by the loop's thread from now on.
        referee: Runs the environments.
        trajectories_in_flight: Trajectories under way at once; as many as keep the engine full
            when None.
        stall_deadline_s: Time one step of the engine may take.
    """

    def __init__(
        self,
        engine: Engine,
        referee: Referee,
        *,
        trajectories_in_flight: int | None = None,
        stall_deadline_s: float = float("inf"),
    ) -> None:
        self._player = Player(engine, referee)
        self._capacity = trajectories_in_flight or engine.max_num_seqs
        self._most = trajectories_in_flight or _MOST_AT_ONCE * engine.max_num_seqs
        self._stall_deadline_s = stall_deadline_s
        self._changed = threading.Condition()
        # Everything below is guarded by the condition.
        self._waiting: deque[tuple[GroupKey, int, Start]] = deque()
        self._num_waiting = 0
        self._expected: set[GroupKey] = set()
        """Groups of this loop whose outcome nobody has told it to forget."""
        self._outcomes: dict[GroupKey, GroupOutcome] = {}
        self._finished: list[GroupKey] = []
        self._counts = Counts()
        self._more = True
        self._told_s = 0.0
        self._step_began_s = time.monotonic()
        self._broken: BaseException | None = None
        # The engine's thread alone.
        self._key_of: dict[Episode, GroupKey] = {}
        self._playing: dict[GroupKey, GroupOutcome] = {}
        self._num_left: dict[GroupKey, int] = {}
        threading.Thread(target=self._run, daemon=True, name="engine").start()

    def add(self, key: GroupKey, size: int, start: Start) -> None:
        """Queue a group of ``size`` trajectories. From any thread."""
        with self._changed:
            self._waiting.append((key, size, start))
            self._num_waiting += size
            self._expected.add(key)
            self._changed.notify_all()

    def update(self, *, more: bool, timeout_s: float) -> Update:
        """Wait until there is something to tell, at most ``timeout_s``.

        Args:
            more: Whether other groups could come: only then is having room something to tell.
            timeout_s: Zero does not wait.

        Raises:
            DriftRayError: What ended the engine's thread, if it was one of ours.
            EngineLostError: The engine failed or hangs; its replica has to go.
        """
        with self._changed:
            self._more = more
            self._changed.wait_for(self._has_news, timeout_s)
            self._check()
            self._told_s = time.monotonic()
            finished, self._finished = self._finished, []
            return Update(
                finished=tuple(finished),
                num_wanted=max(0, self._room()),
                num_in_flight=self._player.num_in_flight + self._num_waiting,
                counts=self._counts,
            )

    def outcome(self, key: GroupKey) -> GroupOutcome:
        """What became of a finished group."""
        with self._changed:
            return self._outcomes[key]

    def forget(self, keys: Iterable[GroupKey]) -> None:
        """Drop outcomes that are committed or kept elsewhere."""
        with self._changed:
            for key in keys:
                self._outcomes.pop(key, None)
                self._expected.discard(key)

    def keep(self, key: GroupKey, outcome: GroupOutcome) -> None:
        """Keep the outcome of a group that was played elsewhere, unless it is played here too."""
        with self._changed:
            self._outcomes.setdefault(key, outcome)

    def _run(self) -> None:
        try:
            while True:
                self._await_work()
                self._admit()
                for episode, failure in self._player.advance():
                    self._settle(episode, failure)
        except BaseException as error:  # whatever it was, the engine is gone
            with self._changed:
                self._broken = error
                self._changed.notify_all()

    def _await_work(self) -> None:
        with self._changed:
            self._step_began_s = float("inf")
            if self._has_news():
                self._changed.notify_all()
            if not self._player.num_in_flight:
                self._changed.wait_for(lambda: self._waiting)
            self._step_began_s = time.monotonic()

    def _admit(self) -> None:
        while self._waiting and self._has_capacity():
            with self._changed:
                key, size, start = self._waiting.popleft()
                self._num_waiting -= size
            episodes = start()
            self._num_left[key] = len(episodes)
            self._playing[key] = GroupOutcome()
            for episode in episodes:
                self._key_of[episode] = key
                self._player.add(episode)

    def _has_capacity(self) -> bool:
        player = self._player
        return player.num_engaged < self._capacity and player.num_in_flight < self._most

    def _settle(self, episode: Episode, failure: Failure | None) -> None:
        key = self._key_of.pop(episode)
        hopeless = failure and failure.cause is FailureCause.CONTEXT_WINDOW
        if failure and not hopeless and (again := episode.again()):
            self._key_of[again] = key
            self._player.add(again)
            return
        if failure:
            self._playing[key].failures.append(failure)
            done = Counts(num_failures=1)
        else:
            trajectory = episode.trajectory()
            self._playing[key].trajectories.append(trajectory)
            done = Counts(
                num_trajectories=1,
                num_solved=int(trajectory.first_success_turn is not None),
                num_sampled_tokens=episode.num_sampled,
            )
        self._num_left[key] -= 1
        with self._changed:
            self._counts += done
            if self._num_left[key] == 0:
                del self._num_left[key]
                self._finish(key, self._playing.pop(key))

    def _finish(self, key: GroupKey, outcome: GroupOutcome) -> None:
        self._finished.append(key)
        # It may have been committed meanwhile, from elsewhere.
        if key in self._expected:
            self._expected.remove(key)
            self._outcomes.setdefault(key, outcome)

    def _room(self) -> int:
        """Trajectories to take on so that enough of them wait at the door."""
        wanted = self._capacity - self._player.num_engaged
        wanted = min(wanted, self._most - self._player.num_in_flight)
        return wanted + int(_WAITING_FRAC * self._capacity) - self._num_waiting

    def _has_news(self) -> bool:
        hungry = self._more and self._room() > _WAITING_FRAC * self._capacity / 2
        idle = not self._player.num_in_flight and not self._waiting
        due = idle or time.monotonic() - self._told_s >= _PACE_S
        return hungry or (bool(self._finished) and due) or self._broken is not None

    def _check(self) -> None:
        if isinstance(self._broken, DriftRayError):
            raise self._broken
        if self._broken:
            reason = f"{type(self._broken).__name__}: {self._broken}"
            raise EngineLostError(f"The engine failed: {reason}") from self._broken
        stalled_s = time.monotonic() - self._step_began_s
        if stalled_s > self._stall_deadline_s:
            raise EngineLostError(f"The engine has not moved for {stalled_s:.0f} s.")
