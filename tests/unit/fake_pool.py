"""A pool that plays groups at once in the test's own process: no Ray, no engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from drift_ray.errors import StageError
from drift_ray.rollout.dispatch import Dispatcher
from drift_ray.rollout.work import Counts, Group, GroupOutcome, PartReport, Play
from drift_ray.rollout.worker import write_part
from drift_ray.store import RunStore
from drift_ray.types import Failure, FailureCause
from tests.unit.scripted import trajectory


class FakeFleet:
    """One replica that is always up."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.cpu_s = 0.0
        self.began_s = 0.0
        self.num_up = 1
        self.num_lost = 0
        self.num_wanted = 1

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def in_state(self, *states: object) -> list[Any]:
        return []


class FakePool:
    """Plays groups in its own process, last ones first, and dies after some parts.

    Args:
        store: Where parts go.
        die_after: Parts that are committed before it dies.
        failing: Prompts whose last trajectory fails.
        unsolved: Prompts without a solved trajectory; of others the first one is.
    """

    max_group_deaths = 1

    def __init__(
        self,
        store: RunStore,
        die_after: int = 10**9,
        failing: Sequence[str] = (),
        unsolved: Sequence[str] = (),
    ) -> None:
        self._store = store
        self._left = die_after
        self._failing = failing
        self._unsolved = unsolved
        self.fleet = FakeFleet()
        self.done: list[str] = []
        self.plays: list[Play] = []
        """How it was asked to play, call by call."""

    def run(self, work: Dispatcher, play: Play) -> Iterator[PartReport | None]:
        self.plays.append(play)
        groups = work.take(1, 10**9, num_replicas=1)
        outcomes = {group.key: self._play(group, play) for group in groups}
        for name in work.finish(1, [group.key for group in reversed(groups)]):
            if not self._left:
                raise StageError("replicas died")
            self._left -= 1
            yield None
            part = work.part(name)
            keys = [(name, index) for index in range(len(part.prompts))]
            store = self._store.subrun(play.subrun)
            report = write_part(store, part, [outcomes[key] for key in keys])
            assert work.close(name) == {1: [index for _, index in reversed(keys)]}
            self.fleet.counts += Counts(
                num_trajectories=report.num_trajectories,
                num_failures=report.num_failures,
                num_solved=report.num_solved,
                num_sampled_tokens=report.num_sampled_tokens,
            )
            self.done.append(name)
            yield report
        assert work.done
        yield None

    def _play(self, group: Group, play: Play) -> GroupOutcome:
        prompt_id, indices = group.prompt.prompt_id, list(play.indices)
        outcome = GroupOutcome()
        if prompt_id in self._failing:
            outcome.failures.append(failure(prompt_id, indices.pop()))
        # As they happen to end, not in the order of their numbers.
        for index in reversed(indices):
            success = index == 0 and prompt_id not in self._unsolved
            outcome.trajectories.append(trajectory(prompt_id, index, success=success))
        return outcome


def failure(prompt_id: str, index: int) -> Failure:
    return Failure(
        prompt_id=prompt_id,
        trajectory_index=index,
        turn_index=0,
        cause=FailureCause.ENVIRONMENT,
        message="the judge is out",
        trace="",
    )
