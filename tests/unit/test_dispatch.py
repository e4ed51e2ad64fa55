"""Who plays what: every group is finished once, every part closed once, whoever comes and goes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from drift_ray.rollout.dispatch import NOBODY, Dispatcher
from drift_ray.rollout.work import Group, GroupKey, Part
from tests.unit.scripted import prompts

PLENTY = 10**9


class Parts:
    """Parts of these sizes, and how many of them were read."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = {f"part-{number}": size for number, size in enumerate(sizes)}
        self.read: list[str] = []

    def __iter__(self) -> Iterator[Part]:
        for name, size in self.sizes.items():
            self.read.append(name)
            yield Part(name=name, prompts=tuple(prompts(["1"] * size)))

    @property
    def groups(self) -> set[GroupKey]:
        return {(name, index) for name, size in self.sizes.items() for index in range(size)}


def dispatcher(*sizes: int, max_group_deaths: int = 2) -> Dispatcher:
    return Dispatcher(Parts(sizes), num_groups=sum(sizes), max_group_deaths=max_group_deaths)


def taken(
    work: Dispatcher, replica: int, num_wanted: int = PLENTY, num_replicas: int = 1
) -> list[tuple[int, int]]:
    """What a replica takes, as numbers of part and group."""
    groups = work.take(replica, num_wanted, num_replicas=num_replicas)
    return [(int(group.key[0].removeprefix("part-")), group.key[1]) for group in groups]


def key(part: int, index: int) -> GroupKey:
    return (f"part-{part}", index)


@pytest.mark.parametrize(
    ("num_groups", "num_wanted", "num_replicas", "num_taken"),
    [
        (10, 3, 1, 3),
        (10, 3, 2, 3),
        (10, 99, 1, 10),
        (10, 99, 2, 5),
        (10, 99, 3, 4),
        (10, 99, 99, 1),
        (10, 99, 0, 10),
        (10, 0, 1, 0),
        (10, -1, 1, 0),
        (0, 9, 1, 0),
    ],
)
def test_nobody_takes_more_than_wanted_or_than_a_fair_share(
    num_groups: int, num_wanted: int, num_replicas: int, num_taken: int
) -> None:
    work = dispatcher(num_groups) if num_groups else dispatcher()
    assert len(taken(work, 1, num_wanted, num_replicas)) == num_taken
    assert work.num_playing(1) == num_taken
    assert work.num_unfinished == num_groups


def test_what_is_played_counts_towards_the_share() -> None:
    work = dispatcher(10)
    assert len(taken(work, 1, 4, num_replicas=2)) == 4
    assert len(taken(work, 1, 4, num_replicas=2)) == 1
    assert taken(work, 1, 4, num_replicas=2) == []
    assert len(taken(work, 2, 9, num_replicas=2)) == 5
    assert not work.has_waiting


def test_groups_come_with_their_prompts() -> None:
    work = dispatcher(2, 1)
    groups = work.take(1, PLENTY, num_replicas=1)
    assert [group.prompt for group in groups] == [
        work.part(name).prompts[index] for name, index in (group.key for group in groups)
    ]
    assert groups[1] == Group(key=key(0, 1), prompt=prompts(["1", "1"])[1])


def test_a_replica_goes_on_with_its_own_part_before_it_opens_another() -> None:
    work = dispatcher(3, 3, 3)
    assert taken(work, 1, 1) == [(0, 0)]
    assert taken(work, 2, 1) == [(1, 0)]
    assert taken(work, 1, 3) == [(0, 1), (0, 2), (2, 0)]
    assert taken(work, 2, 1) == [(1, 1)]


def test_once_all_parts_are_open_replicas_help_where_most_is_left() -> None:
    work = dispatcher(2, 6)
    assert taken(work, 1, 1) == [(0, 0)]
    assert taken(work, 2, 1) == [(1, 0)]
    assert taken(work, 3, 5) == [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5)]
    assert taken(work, 3, 1) == [(0, 1)]
    assert not work.has_waiting


def test_parts_are_read_when_somebody_finds_room_and_not_before() -> None:
    parts = Parts([2, 2, 2])
    work = Dispatcher(parts, num_groups=6, max_group_deaths=1)
    assert parts.read == []
    assert taken(work, 1, 0) == []
    assert parts.read == []
    taken(work, 1, 2)
    assert parts.read == ["part-0"]
    assert taken(work, 1, 0) == []
    assert parts.read == ["part-0"]
    taken(work, 2, 3)
    assert parts.read == ["part-0", "part-1", "part-2"]
    # Only what is open is remembered.
    work.finish(1, [key(0, 0), key(0, 1)])
    work.close("part-0")
    with pytest.raises(KeyError):
        work.part("part-0")


def test_without_parts_there_is_nothing_to_do() -> None:
    work = dispatcher()
    assert work.done
    assert not work.has_waiting
    assert taken(work, 1) == []
    assert work.lose(1) == work.kept_by(1) == []


def test_a_part_is_whole_when_its_last_group_is_and_is_told_once() -> None:
    work = dispatcher(2, 1)
    taken(work, 1)
    assert work.finish(1, [key(0, 1)]) == []
    assert not work.is_whole("part-0")
    assert work.finish(1, [key(1, 0), key(0, 0)]) == ["part-1", "part-0"]
    assert work.is_whole("part-0")
    assert work.finish(1, [key(1, 0), key(0, 0)]) == []
    assert work.keepers("part-0") == {1: [1, 0]}
    assert work.num_unfinished == 0
    assert not work.done  # nothing is committed
    assert work.close("part-0") == {1: [1, 0]}
    assert not work.is_whole("part-0")
    assert work.close("part-1") == {1: [0]}
    assert work.done


def test_groups_of_a_lost_replica_go_to_others_before_new_parts() -> None:
    work = dispatcher(3, 3)
    assert taken(work, 1, 2) == [(0, 0), (0, 1)]
    work.finish(1, [key(0, 1)])
    assert work.num_unfinished == 5
    assert work.lose(1) == []
    assert work.num_unfinished == 6  # what it had finished is gone with it
    assert sorted(taken(work, 2, 3)) == [(0, 0), (0, 1), (0, 2)]
    assert taken(work, 2, 1) == [(1, 0)]


def test_what_comes_late_from_a_lost_replica_is_ignored() -> None:
    work = dispatcher(1)
    taken(work, 1)
    work.lose(1)
    assert work.finish(1, [key(0, 0)]) == []
    assert work.num_unfinished == 1
    assert taken(work, 2) == [(0, 0)]
    assert work.finish(1, [key(0, 0)]) == []  # another plays it now
    assert work.finish(2, [key(0, 0)]) == ["part-0"]
    assert work.finish(1, [key(0, 0)]) == []
    assert work.keepers("part-0") == {2: [0]}


def test_a_group_that_replicas_die_of_is_given_up_and_no_other() -> None:
    work = dispatcher(3, max_group_deaths=2)
    assert taken(work, 1) == [(0, 0), (0, 1), (0, 2)]
    work.finish(1, [key(0, 0)])
    assert work.lose(1) == []
    assert [work.num_deaths(key(0, index)) for index in range(3)] == [0, 1, 1]
    assert sorted(taken(work, 2)) == [(0, 0), (0, 1), (0, 2)]
    work.finish(2, [key(0, 0), key(0, 1)])
    assert work.lose(2) == []  # the third is given up; those it kept are to be played again
    assert work.keepers("part-0") == {NOBODY: [2]}
    assert sorted(taken(work, 3)) == [(0, 0), (0, 1)]
    work.finish(3, [key(0, 0)])
    assert work.lose(3) == []  # the second death of group 1; group 0 never saw one
    assert work.keepers("part-0") == {NOBODY: [2, 1]}
    assert taken(work, 4) == [(0, 0)]
    assert work.finish(4, [key(0, 0)]) == ["part-0"]
    assert work.num_deaths(key(0, 2)) == 2
    assert work.keepers("part-0") == {NOBODY: [2, 1], 4: [0]}
    work.close("part-0")
    assert work.num_deaths(key(0, 2)) == 0
    assert work.done


def test_a_part_may_become_whole_because_its_last_groups_are_given_up() -> None:
    work = dispatcher(1, 1, max_group_deaths=1)
    taken(work, 1)
    assert work.lose(1) == ["part-0", "part-1"]
    assert work.num_unfinished == 0
    assert work.keepers("part-1") == {NOBODY: [0]}


def test_a_replica_that_was_sent_away_is_not_blamed() -> None:
    work = dispatcher(1, max_group_deaths=1)
    for replica in range(1, 5):
        assert taken(work, replica) == [(0, 0)]
        assert work.lose(replica, blame=False) == []
    assert work.num_deaths(key(0, 0)) == 0
    assert taken(work, 9) == [(0, 0)]


def test_others_go_on_with_what_a_leaving_replica_has_not_begun() -> None:
    work = dispatcher(4, 4)
    assert taken(work, 1, 1) == [(0, 0)]
    work.release(1)
    assert taken(work, 2, 4) == [(0, 1), (0, 2), (0, 3), (1, 0)]
    assert work.finish(1, [key(0, 0)]) == []  # it may finish what it plays
    assert work.finish(2, [key(0, 1), key(0, 2), key(0, 3)]) == ["part-0"]
    assert work.keepers("part-0") == {1: [0], 2: [1, 2, 3]}


def test_finished_groups_move_to_another_keeper() -> None:
    work = dispatcher(3, 1)
    taken(work, 1)
    work.finish(1, [key(0, 0), key(0, 1), key(1, 0)])
    kept = work.kept_by(1)
    assert kept == [key(0, 0), key(0, 1), key(1, 0)]
    work.close("part-1")  # committed while they were on their way
    assert work.move(kept, 1, 2) == [key(1, 0)]
    assert work.kept_by(1) == []
    assert work.kept_by(2) == [key(0, 0), key(0, 1)]
    work.lose(1)
    assert work.keepers("part-0") == {2: [0, 1]}
    assert work.move(kept, 1, 3) == kept  # they are no longer the first one's to give


def test_a_move_that_comes_too_late_takes_nothing_from_who_plays_the_groups_anew() -> None:
    work = dispatcher(3)
    taken(work, 1)
    work.finish(1, [key(0, 0), key(0, 1), key(0, 2)])
    kept = work.kept_by(1)
    work.lose(1)  # on their way; then the leaving replica dies
    assert len(taken(work, 2, 2)) == 2
    played, being_played = sorted(set(kept) & set(work._playing[2]))
    work.finish(2, [played])
    # The new keeper must not be told to forget what it has, or will have, played itself.
    useless = work.move(kept, 1, 2)
    assert set(useless) == set(kept) - {played, being_played}
    assert work.kept_by(2) == [played]


def test_a_part_can_be_closed_though_a_keeper_was_lost_while_it_was_committed() -> None:
    work = dispatcher(3, 1)
    assert taken(work, 1, 1) == [(0, 0)]
    assert taken(work, 2, 2) == [(1, 0), (0, 1)]
    assert taken(work, 1, 1) == [(0, 2)]
    work.finish(2, [key(0, 1)])
    assert work.finish(1, [key(0, 0), key(0, 2)]) == ["part-0"]
    work.lose(1)  # while the second one writes what it has fetched
    assert not work.is_whole("part-0")
    assert work.num_unfinished == 3
    assert len(taken(work, 3, 1)) == 1
    # The one that began to play a group anew, and the one that keeps another, may forget them.
    kept = work.close("part-0")
    assert {replica: len(indices) for replica, indices in kept.items()} == {2: 1, 3: 1}
    assert work.num_playing(3) == 0
    assert work.num_unfinished == 1
    assert taken(work, 3) == []  # the group that nobody had begun is not played any more
    assert work.finish(2, [key(1, 0)]) == ["part-1"]
    work.close("part-1")
    assert work.done


class Dispatching(RuleBasedStateMachine):
    """Any order of events, against a model that is nothing but sets."""

    @initialize(
        sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6),
        max_group_deaths=st.integers(1, 3),
        num_replicas=st.integers(1, 3),
    )
    def begin(self, sizes: list[int], max_group_deaths: int, num_replicas: int) -> None:
        self.parts = Parts(sizes)
        self.max_group_deaths = max_group_deaths
        self.work = Dispatcher(self.parts, num_groups=sum(sizes), max_group_deaths=max_group_deaths)
        self.up = list(range(1, num_replicas + 1))
        self.draining: list[int] = []
        self.gone: dict[int, set[GroupKey]] = {}
        """What each lost replica played when it was lost, or kept."""
        self.num_made = num_replicas
        self.playing: dict[GroupKey, int] = {}
        self.kept: dict[GroupKey, int] = {}
        self.deaths: dict[GroupKey, int] = {}
        self.begun: set[GroupKey] = set()
        """Groups that were ever handed out."""
        self.closed: list[str] = []
        self.committing: set[str] = set()
        self.moves: list[tuple[list[GroupKey], int, int]] = []

    @property
    def alive(self) -> list[int]:
        return self.up + self.draining

    @rule()
    def join(self) -> None:
        self.num_made += 1
        self.up.append(self.num_made)

    @precondition(lambda self: self.up)
    @rule(which=st.integers(0), num_wanted=st.integers(0, 7))
    def take(self, which: int, num_wanted: int) -> None:
        replica = self.up[which % len(self.up)]
        before, read_before = self.num_playing(replica), list(self.parts.read)
        groups = self.work.take(replica, num_wanted, num_replicas=len(self.up))
        share = -(-self.num_unfinished() // len(self.up))
        assert len(groups) <= num_wanted
        assert not groups or before + len(groups) <= share
        keys = [group.key for group in groups]
        assert len(set(keys)) == len(keys)
        for each in keys:
            assert each not in self.playing
            assert each not in self.kept
            assert each[0] not in self.closed
            self.playing[each] = replica
        self.begun |= set(keys)
        # A part is read for the sake of a group that is taken from it.
        assert set(self.parts.read[len(read_before) :]) <= {name for name, _ in keys}
        if len(groups) < min(num_wanted, share - before):
            assert not self.waiting()
            assert not self.work.has_waiting

    @precondition(lambda self: self.playing)
    @rule(which=st.integers(0), mask=st.integers(1, 2**12))
    def finish(self, which: int, mask: int) -> None:
        replica = self.pick(sorted(set(self.playing.values())), which)
        own = sorted(each for each, by in self.playing.items() if by == replica)
        self._finish(replica, [each for i, each in enumerate(own) if mask >> i & 1] or own[:1])

    @rule(which=st.integers(0), number=st.integers(0))
    def finish_late(self, which: int, number: int) -> None:
        """Somebody tells of groups that it does not play, or no longer."""
        replica = self.pick([*self.gone, *self.alive, 999], which)
        others = {each for each in self.parts.groups if self.playing.get(each) != replica}
        others |= self.gone.get(replica, set())
        before = self.num_unfinished()
        assert self.work.finish(replica, self.gone.get(replica, set())) == []
        assert (
            self.work.finish(replica, [self.pick(sorted(others), number)] if others else []) == []
        )
        assert self.work.num_unfinished == before

    @precondition(lambda self: self.alive)
    @rule(which=st.integers(0), blame=st.booleans())
    def lose(self, which: int, blame: bool) -> None:
        replica = self.pick(self.alive, which)
        self.up = [each for each in self.up if each != replica]
        self.draining = [each for each in self.draining if each != replica]
        played = {each for each, by in self.playing.items() if by == replica}
        kept = {each for each, by in self.kept.items() if by == replica}
        assert set(self.work.kept_by(replica)) == kept
        whole = self.work.lose(replica, blame=blame)
        self.gone[replica] = played | kept
        for each in kept:
            del self.kept[each]
        given_up = set()
        for each in played:
            del self.playing[each]
            self.deaths[each] = self.deaths.get(each, 0) + blame
            if self.deaths[each] >= self.max_group_deaths:
                self.kept[each] = NOBODY
                given_up.add(each[0])
        assert sorted(whole) == sorted(name for name in given_up if self.is_whole(name))

    @precondition(lambda self: self.up)
    @rule(which=st.integers(0))
    def drain(self, which: int) -> None:
        replica = self.pick(self.up, which)
        self.up.remove(replica)
        self.draining.append(replica)
        self.work.release(replica)

    @precondition(lambda self: self.draining and self.up)
    @rule(which=st.integers(0), to=st.integers(0))
    def begin_move(self, which: int, to: int) -> None:
        leaving = self.pick(self.draining, which)
        if keys := self.work.kept_by(leaving):
            self.moves.append((keys, leaving, self.pick(self.up, to)))

    @precondition(lambda self: self.moves)
    @rule(which=st.integers(0))
    def end_move(self, which: int) -> None:
        keys, leaving, to = self.moves.pop(which % len(self.moves))
        if to not in self.alive:
            return
        useless = set(self.work.move(keys, leaving, to))
        for each in keys:
            if self.kept.get(each) == leaving:
                self.kept[each] = to
            # What it is told to forget is nothing that it plays or keeps.
            own = to in (self.kept.get(each), self.playing.get(each))
            assert (each in useless) == (not own)

    @precondition(lambda self: self.to_commit())
    @rule(which=st.integers(0))
    def begin_commit(self, which: int) -> None:
        name = self.pick(self.to_commit(), which)
        keepers = self.work.keepers(name)
        assert {(name, i): by for by, indices in keepers.items() for i in indices} == {
            each: by for each, by in self.kept.items() if each[0] == name
        }
        self.committing.add(name)

    @precondition(lambda self: self.committing)
    @rule(which=st.integers(0))
    def end_commit(self, which: int) -> None:
        """It succeeds, though some of its keepers may be gone by now."""
        self._close(self.pick(sorted(self.committing), which))

    @precondition(lambda self: self.committing)
    @rule(which=st.integers(0))
    def fail_commit(self, which: int) -> None:
        self.committing.remove(self.pick(sorted(self.committing), which))

    @invariant()
    def the_accounts_are_right(self) -> None:
        if not hasattr(self, "work"):
            return
        work = self.work
        assert work.num_unfinished == self.num_unfinished() >= 0
        assert work.done == (len(self.closed) == len(self.parts.sizes))
        assert work.has_waiting or not self.waiting()
        for replica in self.alive:
            assert work.num_playing(replica) == self.num_playing(replica)
            assert set(work.kept_by(replica)) == {k for k, by in self.kept.items() if by == replica}
        for name in self.parts.sizes:
            assert work.is_whole(name) == self.is_whole(name)
            if name not in self.closed:
                for index in range(self.parts.sizes[name]):
                    assert work.num_deaths((name, index)) == self.deaths.get((name, index), 0)
        # Read lazily: each part that was read has a group that was handed out.
        assert set(self.parts.read) == {name for name, _ in self.begun}

    def teardown(self) -> None:
        """Whatever happened, the rest can be done."""
        if not hasattr(self, "work"):
            return
        self.join()
        for _ in range(3 * sum(self.parts.sizes.values()) + 3):
            for name in self.to_commit() + sorted(self.committing):
                self._close(name)
            for which in range(len(self.up)):
                self.take(which, 2)
            for replica in sorted(set(self.playing.values())):
                self._finish(replica, [k for k, by in self.playing.items() if by == replica])
            if self.work.done:
                break
        assert self.work.done
        assert self.work.num_unfinished == 0
        assert not self.work.has_waiting or self.parts.read == list(self.parts.sizes)
        assert sorted(self.closed) == sorted(self.parts.sizes)
        assert self.begun == self.parts.groups

    def _finish(self, replica: int, keys: list[GroupKey]) -> None:
        whole = self.work.finish(replica, keys)
        for each in keys:
            del self.playing[each]
            self.kept[each] = replica
        names = {name for name, _ in keys}
        assert sorted(whole) == sorted(name for name in names if self.is_whole(name))

    def _close(self, name: str) -> None:
        kept = self.work.close(name)
        told = {(name, index): by for by, indices in kept.items() for index in indices}
        involved = self.kept | self.playing
        assert told == {each: by for each, by in involved.items() if each[0] == name}
        for each in told:
            self.kept.pop(each, None)
            self.playing.pop(each, None)
        self.committing.discard(name)
        assert name not in self.closed
        self.closed.append(name)

    def pick(self, choices: Sequence[Any], which: int) -> Any:
        return choices[which % len(choices)]

    def num_playing(self, replica: int) -> int:
        return sum(by == replica for by in self.playing.values())

    def num_unfinished(self) -> int:
        return len([each for each in self.parts.groups if self.is_unfinished(each)])

    def is_unfinished(self, each: GroupKey) -> bool:
        return each not in self.kept and each[0] not in self.closed

    def waiting(self) -> set[GroupKey]:
        return {k for k in self.parts.groups if self.is_unfinished(k) and k not in self.playing}

    def is_whole(self, name: str) -> bool:
        keys = [(name, index) for index in range(self.parts.sizes[name])]
        return all(each in self.kept for each in keys)

    def to_commit(self) -> list[str]:
        return [
            name for name in self.parts.sizes if self.is_whole(name) and name not in self.committing
        ]


TestDispatching = Dispatching.TestCase
TestDispatching.settings = settings(stateful_step_count=40)


@given(
    sizes=st.lists(st.integers(1, 9), max_size=8),
    capacities=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_nobody_idles_while_another_hoards(
    sizes: list[int], capacities: list[int], order: random.Random
) -> None:
    work = dispatcher(*sizes)
    playing: dict[int, list[GroupKey]] = {each: [] for each, _ in enumerate(capacities, start=1)}
    num_finished = 0
    while not work.done:
        share = -(-work.num_unfinished // len(playing))
        for (replica, own), capacity in zip(playing.items(), capacities, strict=True):
            room = capacity - len(own)
            groups = work.take(replica, room, num_replicas=len(playing))
            own += [group.key for group in groups]
            assert not groups or len(own) <= share
            # Whoever has room left has its share, or there is nothing left to take.
            assert len(own) >= min(capacity, share) or not work.has_waiting
        replica = order.choice([each for each, own in playing.items() if own])
        own = playing[replica]
        num_finished += 1
        for name in work.finish(replica, [own.pop(order.randrange(len(own)))]):
            work.close(name)
    assert num_finished == sum(sizes)
