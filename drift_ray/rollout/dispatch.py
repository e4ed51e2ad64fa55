"""Which replica plays which groups: the decisions of the pool, without their execution.

A replica opens a part and gets its groups bit by bit, as it finds room; so most parts are played
and committed by one replica. Once all parts are open, replicas help each other with groups that
nobody has begun, and none gets more than its share of what is left. Groups of a replica that dies
go back to the others. Knows neither Ray nor time, holds only the parts that are open.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from drift_ray.rollout.work import Group, GroupKey, Part

ReplicaId = int
NOBODY: ReplicaId = 0
"""Keeps the groups that were given up."""


@dataclass(slots=True)
class _OpenPart:
    part: Part
    waiting: deque[int]
    """Positions of the groups that nobody plays."""
    finished: dict[int, ReplicaId] = field(default_factory=dict)
    """Who keeps each finished group."""

    @property
    def whole(self) -> bool:
        return len(self.finished) == len(self.part.prompts)


class Dispatcher:
    """Hands out the groups of parts and keeps account of them.

    Args:
        parts: The parts to fill, read one by one as replicas find room.
        num_groups: Groups in all of them together.
        max_group_deaths: Replicas that may be lost while they play a group before it is given up.
    """

    def __init__(self, parts: Iterable[Part], *, num_groups: int, max_group_deaths: int) -> None:
        self._parts: Iterator[Part] = iter(parts)
        self._all_open = num_groups == 0
        self._max_group_deaths = max_group_deaths
        self._open: dict[str, _OpenPart] = {}
        self._homes: dict[ReplicaId, deque[str]] = {}
        """Parts that a replica has opened and goes on with."""
        self._orphans: deque[str] = deque()
        """Open parts that nobody goes on with, though groups may be waiting."""
        self._playing: dict[ReplicaId, set[GroupKey]] = {}
        self._deaths: dict[GroupKey, int] = {}
        self.num_given_up = 0
        """Groups that will not be played again."""
        self.num_unfinished = num_groups
        """Groups that are waiting, being played, or in parts that are not open yet."""

    @property
    def done(self) -> bool:
        """Whether every part was committed."""
        return self.num_unfinished == 0 and not self._open

    @property
    def has_waiting(self) -> bool:
        """Whether there are groups that nobody plays."""
        return not self._all_open or any(each.waiting for each in self._open.values())

    def part(self, name: str) -> Part:
        """An open part."""
        return self._open[name].part

    def num_playing(self, replica: ReplicaId) -> int:
        """Groups that a replica plays."""
        return len(self._playing.get(replica, ()))

    def kept_by(self, replica: ReplicaId) -> list[GroupKey]:
        """Finished groups that a replica keeps for parts that are not committed."""
        return [
            (name, index)
            for name, each in self._open.items()
            for index, keeper in each.finished.items()
            if keeper == replica
        ]

    def take(self, replica: ReplicaId, num_wanted: int, *, num_replicas: int) -> list[Group]:
        """Groups for a replica to play, at most as many as it wants.

        Args:
            replica: Who asks.
            num_wanted: Groups it has room for.
            num_replicas: Replicas among which the rest is to be shared, this one included.
        """
        playing = self._playing.setdefault(replica, set())
        share = self._share(replica, num_replicas)
        groups: list[Group] = []
        while len(groups) < min(num_wanted, share) and (each := self._source(replica)):
            while each.waiting and len(groups) < min(num_wanted, share):
                index = each.waiting.popleft()
                key = (each.part.name, index)
                groups.append(Group(key=key, prompt=each.part.prompts[index]))
                playing.add(key)
        return groups

    def has_more_for(self, replica: ReplicaId, *, num_replicas: int) -> bool:
        """Whether a replica would be given another group, had it room for one."""
        return self.has_waiting and self._share(replica, num_replicas) > 0

    def finish(self, replica: ReplicaId, keys: Iterable[GroupKey]) -> list[str]:
        """Take note of finished groups; late ones of a replica thought lost are ignored.

        Returns:
            Names of the parts that became whole: they can be committed.
        """
        playing = self._playing.get(replica, set())
        touched = []
        for key in keys:
            if key in playing:
                playing.remove(key)
                touched.append(self._settle(key, replica))
        return list(dict.fromkeys(each.part.name for each in touched if each.whole))

    def keepers(self, name: str) -> dict[ReplicaId, list[int]]:
        """Who keeps which finished groups of a part; ``NOBODY``: those that were given up."""
        kept: dict[ReplicaId, list[int]] = {}
        for index, keeper in self._open[name].finished.items():
            kept.setdefault(keeper, []).append(index)
        return kept

    def num_deaths(self, key: GroupKey) -> int:
        """Replicas that were lost while they played a group."""
        return self._deaths.get(key, 0)

    def is_whole(self, name: str) -> bool:
        """Whether a part is open and all its groups are finished."""
        return name in self._open and self._open[name].whole

    def close(self, name: str) -> dict[ReplicaId, list[int]]:
        """Take note that a part was committed.

        Returns:
            Who need not go on with, or keep, which of its groups.
        """
        kept = self.keepers(name)
        each = self._open.pop(name)
        for index in range(len(each.part.prompts)):
            self._deaths.pop((name, index), None)
        if not each.whole:
            # A replica was lost while it helped to commit: what it had kept is played again.
            self.num_unfinished -= len(each.part.prompts) - len(each.finished)
            for replica, playing in self._playing.items():
                for key in [key for key in playing if key[0] == name]:
                    playing.remove(key)
                    kept.setdefault(replica, []).append(key[1])
        return kept

    def move(self, keys: Sequence[GroupKey], leaving: ReplicaId, to: ReplicaId) -> list[GroupKey]:
        """Take note that another replica keeps finished groups from now on.

        Returns:
            Those that need not be kept any longer, by anyone.
        """
        useless = []
        for name, index in keys:
            finished = self._open[name].finished if name in self._open else {}
            if finished.get(index) == leaving:
                finished[index] = to
            elif finished.get(index) != to and (name, index) not in self._playing.get(to, ()):
                # Else the leaving replica was lost on the way, and the other plays it itself.
                useless.append((name, index))
        return useless

    def release(self, replica: ReplicaId) -> None:
        """Let others open what a replica has not begun: it takes no more groups."""
        self._orphans.extend(self._homes.pop(replica, ()))

    def lose(self, replica: ReplicaId, *, blame: bool = True) -> list[str]:
        """Give the groups of a lost replica to others, those it had finished included.

        Args:
            replica: Who is lost.
            blame: Whether the groups that it played may be the reason.

        Returns:
            Names of the parts that became whole because their last groups were given up.
        """
        self.release(replica)
        for name, index in self.kept_by(replica):
            del self._open[name].finished[index]
            self._wait_again((name, index))
            self.num_unfinished += 1
        whole = []
        for key in sorted(self._playing.pop(replica, set())):
            self._deaths[key] = self._deaths.get(key, 0) + blame
            if self._deaths[key] < self._max_group_deaths:
                self._wait_again(key)
            else:
                self.num_given_up += 1
                if self._settle(key, NOBODY).whole:
                    whole.append(key[0])
        return whole

    def _share(self, replica: ReplicaId, num_replicas: int) -> int:
        """Groups that a replica may have beyond those that it plays."""
        fair = -(-self.num_unfinished // max(num_replicas, 1))
        return fair - self.num_playing(replica)

    def _settle(self, key: GroupKey, keeper: ReplicaId) -> _OpenPart:
        name, index = key
        each = self._open[name]
        each.finished[index] = keeper
        self.num_unfinished -= 1
        return each

    def _wait_again(self, key: GroupKey) -> None:
        name, index = key
        self._open[name].waiting.append(index)
        self._orphans.append(name)

    def _source(self, replica: ReplicaId) -> _OpenPart | None:
        """The part a replica should take its next groups from."""
        for names in (self._homes.setdefault(replica, deque()), self._orphans):
            while names:
                each = self._open.get(names[0])
                if each and each.waiting:
                    return each
                names.popleft()
        if not self._all_open:
            part = next(self._parts, None)
            if part is not None:
                each = _OpenPart(part=part, waiting=deque(range(len(part.prompts))))
                self._open[part.name] = each
                self._homes[replica].append(part.name)
                return each
            self._all_open = True
        most = max(self._open.values(), key=lambda each: len(each.waiting), default=None)
        return most if most and most.waiting else None
