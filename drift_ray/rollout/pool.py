"""The pool: keeps replicas fed, and sees to it that whole parts are committed.

One thread of the driver waits for whichever replica answers first. Which groups go where is the
dispatcher's decision, how many replicas there are is the fleet's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from drift_ray.cluster import task_failure
from drift_ray.config import ModelConfig, ReplicaConfig
from drift_ray.errors import EngineLostError
from drift_ray.rollout.dispatch import NOBODY, Dispatcher
from drift_ray.rollout.engines import make_engine
from drift_ray.rollout.fleet import Fleet, Replica, ReplicaState
from drift_ray.rollout.work import Group, GroupKey, PartReport, Play, Update
from drift_ray.rollout.worker import HEARTBEAT_S, MakeEngine

_TICK_S = 0.5
"""How often deadlines and scaling are looked at when no replica answers."""
_ANSWER_GRACE_S = 60.0
"""Beyond the stall deadline: then it is not the engine that hangs, but the whole process."""
_AT_WORK = (ReplicaState.UP, ReplicaState.DRAINING)


class ReplicaPool:
    """Replicas that play the groups of parts. Use as a context manager.

    Args:
        run_url: The run directory; must be visible to every node.
        model: The reference policy.
        config: How many engines, how large.
        make_engine: Loads an engine inside a replica.
    """

    def __init__(
        self,
        run_url: str,
        model: ModelConfig,
        config: ReplicaConfig,
        make_engine: MakeEngine = make_engine,
    ) -> None:
        self._config = config
        self._folder: str | None = None
        self.fleet = Fleet(run_url, model, config, make_engine)

    def __enter__(self) -> ReplicaPool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def max_group_deaths(self) -> int:
        """Replicas that may be lost while they play a group before it is given up."""
        return self._config.max_group_deaths

    def stop(self) -> None:
        """End all replicas and free their resources; the next run starts new ones."""
        for replica in self.fleet:
            self.fleet.remove(replica)

    def within(self, folder: str) -> ReplicaPool:
        """The same replicas, for a run that lies in a folder of the run directory.

        So one pool serves any number of runs that share a reference policy, one after the other.
        """
        pool = copy(self)
        pool._folder = folder if self._folder is None else f"{self._folder}/{folder}"
        return pool

    def run(self, work: Dispatcher, play: Play) -> Iterator[PartReport | None]:
        """Play all parts, and yield a report when one is committed, None every now and then.

        Groups whose replica is lost are played again: what is committed is the same.

        Raises:
            DriftRayError: A replica's own error, if it was one of ours.
            StageError: Replicas die again and again, or too few find room.
        """
        if self._folder is not None:
            play = play.within(self._folder)
        session = _Session(self.fleet, self._config, work, play)
        while not work.done:
            yield from session.advance()
            yield None
        session.end()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Errand:
    """Something that replicas do beside playing: a part to commit, or groups to hand over."""

    worker: int
    """Who does it."""
    involved: frozenset[int]
    """Replicas that must not leave before it is done."""
    part: str | None = None
    """The part that is committed; None when groups are handed over."""
    keys: tuple[GroupKey, ...] = ()
    """The groups that are handed over."""
    began_s: float = field(default_factory=time.monotonic)

    def touches(self, name: str) -> bool:
        """Whether it is about groups of a part."""
        return name == self.part or any(key[0] == name for key in self.keys)

    def __str__(self) -> str:
        return f"committing {self.part}" if self.part else "handing over finished groups"


class _Session:
    """One dispatcher's work on one fleet."""

    def __init__(self, fleet: Fleet, config: ReplicaConfig, work: Dispatcher, play: Play) -> None:
        self._fleet = fleet
        self._config = config
        self._work = work
        self._play = play
        self._play_ref = ray.put(play)
        self._stale: set[int] = set()
        """Replicas that may still play groups which were committed from elsewhere."""
        self._whole: dict[str, None] = {}
        """Parts to commit."""
        self._errands: dict[Any, _Errand] = {}

    def advance(self) -> list[PartReport]:
        """Give everybody something to do, wait for the first answer, and take in all answers."""
        self._fleet.fill()
        for replica in self._fleet.surplus():
            self._dismiss(replica)
        for replica in self._fleet.in_state(ReplicaState.DRAINING):
            self._let_go(replica)
        self._fleet.check_enough()
        for name in list(self._whole):
            self._commit(name)
        for replica in self._fleet.in_state(*_AT_WORK):
            self._exchange(replica)
        reports = []
        for ref in self._wait():
            if ref in self._errands:
                report = self._back_from(self._errands.pop(ref), ref)
                reports += [report] if report else []
            else:
                self._answered(ref)
        return reports

    def end(self) -> None:
        """End replicas that may have work left: the next session may load other weights."""
        for replica_id in self._stale:
            if replica_id in self._fleet:
                self._fleet.remove(self._fleet[replica_id])

    def _lose_the_silent(self) -> None:
        now = time.monotonic()
        patience_s = self._config.stall_deadline_s + _ANSWER_GRACE_S
        deadlines_s = dict.fromkeys(_AT_WORK, patience_s)
        deadlines_s[ReplicaState.STARTING] = self._config.start_deadline_s
        for replica in self._fleet.in_state(*deadlines_s):
            deadline_s = deadlines_s[replica.state]
            if replica.call is not None and now - replica.called_s > deadline_s:
                self._lose(replica, f"{replica.state}, no answer for {deadline_s:.0f} s")
        for ref, errand in list(self._errands.items()):
            if now - errand.began_s > patience_s:
                del self._errands[ref]
                if errand.worker in self._fleet:
                    self._lose(self._fleet[errand.worker], f"{errand} takes too long")

    def _wait(self) -> list[Any]:
        self._lose_the_silent()
        refs = [each.call for each in self._fleet if each.call is not None]
        refs += self._errands
        if not refs:
            time.sleep(_TICK_S)
            return []
        done, others = ray.wait(refs, num_returns=1, timeout=_TICK_S)
        if done and others:
            done += ray.wait(others, num_returns=len(others), timeout=0)[0]
        return list(done)

    def _exchange(self, replica: Replica) -> None:
        if replica.call is not None:
            return
        work = self._work
        groups: list[Group] = []
        more = False
        if replica.state is ReplicaState.UP:
            # Those that are still starting get no share: they may take long.
            sharing = self._fleet.num_up
            num_wanted = -(-replica.num_wanted // self._play.group_size)
            groups = work.take(replica.replica_id, num_wanted, num_replicas=sharing)
            more = work.has_more_for(replica.replica_id, num_replicas=sharing)
        idle = not work.num_playing(replica.replica_id) and not replica.forget
        if idle and time.monotonic() - replica.called_s < HEARTBEAT_S:
            return
        forget, replica.forget = replica.forget, []
        # Who plays nothing has nothing to wait for, and the next session may come at once.
        timeout_s = HEARTBEAT_S if work.num_playing(replica.replica_id) else 0.0
        self._call(
            replica,
            replica.actor.exchange.remote(self._play_ref, groups, forget, more, timeout_s),
        )

    def _answered(self, ref: Any) -> None:
        replica = next((each for each in self._fleet if each.call == ref), None)
        if replica is None:
            return  # lost in the meantime
        replica.call = None
        try:
            answer = ray.get(ref)
        except RayTaskError as error:
            # A first replica that cannot start has a reason that all share; a later one its own.
            own = replica.state is ReplicaState.STARTING and self._fleet.was_up
            if not own and not _is_loss(error):
                raise task_failure(error, f"Replica {replica.replica_id}") from error
            self._lose(replica, error.cause)
            return
        except RayError as error:
            self._lose(replica, error)
            return
        if replica.state is ReplicaState.PENDING:
            replica.placement, replica.state = answer, ReplicaState.STARTING
            self._call(replica, replica.actor.warm_up.remote())
            return
        if replica.state is ReplicaState.STARTING:
            replica.state = ReplicaState.UP
            replica.called_s = 0.0
            self._fleet.was_up = True
        self._take_in(replica, answer)

    def _take_in(self, replica: Replica, update: Update) -> None:
        replica.num_wanted = update.num_wanted
        replica.num_in_flight = update.num_in_flight
        replica.counts = update.counts
        replica.cpu_s = update.cpu_s
        for name in self._work.finish(replica.replica_id, update.finished):
            self._whole[name] = None

    def _call(self, replica: Replica, ref: Any) -> None:
        replica.call, replica.called_s = ref, time.monotonic()

    def _lose(self, replica: Replica, reason: object) -> None:
        preempted = isinstance(reason, ActorDiedError) and reason.preempted
        for name in self._work.lose(replica.replica_id, blame=not preempted):
            self._whole[name] = None
        self._fleet.replace(replica, reason)

    def _dismiss(self, replica: Replica) -> None:
        if replica.state is ReplicaState.UP:
            replica.state = ReplicaState.DRAINING
            replica.drain_until_s = time.monotonic() + self._config.drain_deadline_s
            self._work.release(replica.replica_id)
        else:
            self._fleet.remove(replica)

    def _let_go(self, replica: Replica) -> None:
        """End a draining replica once nothing it has done would be lost, or its time is up."""
        if any(replica.replica_id in each.involved for each in self._errands.values()):
            return
        in_time = time.monotonic() < replica.drain_until_s
        if self._work.num_playing(replica.replica_id) and in_time:
            return
        kept = tuple(self._work.kept_by(replica.replica_id))
        up = self._fleet.in_state(ReplicaState.UP)
        if kept and up:
            self._move(kept, replica, max(up, key=lambda each: each.num_wanted))
        elif not kept or not in_time:
            for name in self._work.lose(replica.replica_id, blame=False):
                self._whole[name] = None
            self._fleet.remove(replica)

    def _move(self, keys: tuple[GroupKey, ...], leaving: Replica, staying: Replica) -> None:
        ref = staying.actor.keep.remote(keys, leaving.actor.fetch.remote(keys))
        self._errands[ref] = _Errand(
            worker=staying.replica_id,
            involved=frozenset({leaving.replica_id, staying.replica_id}),
            keys=keys,
        )

    def _commit(self, name: str) -> None:
        """Let the replica that keeps most of a part write it, with what it needs of the others."""
        if not self._work.is_whole(name):
            del self._whole[name]  # a replica was lost, and with it some of the groups
            return
        if any(errand.touches(name) for errand in self._errands.values()):
            return  # its groups are on their way, or it is committed by somebody already
        keepers = self._work.keepers(name)
        given_up = {
            index: f"{self._work.num_deaths((name, index))} replicas died while they played it"
            for index in keepers.pop(NOBODY, [])
        }
        writers = sorted(keepers, key=lambda each: len(keepers[each]))
        writers = writers or [each.replica_id for each in self._fleet.in_state(ReplicaState.UP)]
        if not writers:
            return
        writer, others = writers[-1], {k: v for k, v in keepers.items() if k != writers[-1]}
        fetched = [
            self._fleet[other].actor.fetch.remote([(name, index) for index in indices])
            for other, indices in others.items()
        ]
        ref = self._fleet[writer].actor.commit.remote(
            self._work.part(name), self._play, given_up, list(others.values()), *fetched
        )
        self._errands[ref] = _Errand(
            worker=writer, involved=frozenset({writer, *others}), part=name
        )
        del self._whole[name]

    def _back_from(self, errand: _Errand, ref: Any) -> PartReport | None:
        try:
            report: PartReport | None = ray.get(ref)
        except RayError as error:
            if isinstance(error, RayTaskError) and not _is_loss(error):
                raise task_failure(error, str(errand).capitalize()) from error
            # Who was lost will be noticed by its own call; the groups it kept go to others then.
            if errand.part and self._work.is_whole(errand.part):
                self._whole[errand.part] = None
            return None
        if errand.part is None:
            self._handed_over(errand)
        else:
            self._close(errand.part)
        return report

    def _close(self, name: str) -> None:
        whole = self._work.is_whole(name)
        for replica_id, indices in self._work.close(name).items():
            if replica_id in self._fleet:
                self._fleet[replica_id].forget.extend((name, index) for index in indices)
                if not whole:
                    self._stale.add(replica_id)

    def _handed_over(self, errand: _Errand) -> None:
        if errand.worker not in self._fleet:
            return
        (leaving,) = errand.involved - {errand.worker}
        useless = self._work.move(errand.keys, leaving, errand.worker)
        self._fleet[errand.worker].forget.extend(useless)


def _is_loss(error: RayTaskError) -> bool:
    """Whether a call failed because a replica is lost: its own, or one that it fetched from."""
    cause = error.cause
    return isinstance(cause, EngineLostError) or (
        isinstance(cause, RayError) and not isinstance(cause, RayTaskError)
    )
