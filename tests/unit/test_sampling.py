"""Parts are named by their work, and exactly the missing ones are made."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.config import SamplingConfig
from drift_ray.errors import DataError, StageError
from drift_ray.rollout.pool import ReplicaPool
from drift_ray.rollout.sampling import Totals, missing_jobs, plan_parts, sample_missing
from drift_ray.rollout.worker import PartJob, PartReport, PolicyRef
from drift_ray.schema import TRAJECTORY_SCHEMA, trajectory_table
from drift_ray.store import RunStore
from drift_ray.types import Prompt
from tests.unit.scripted import prompts, run_config, trajectory

POLICY = PolicyRef(digest="reference")


@pytest.fixture
def task(tmp_path: Path) -> Any:
    return run_config(tmp_path).task


def plan(task: Any, chosen: Sequence[Prompt], **settings: Any) -> list[PartJob]:
    given_settings: dict[str, Any] = {
        "folder": "rollouts",
        "digest": "d",
        "prompts_per_part": 2,
        "group_size": 3,
        "policy": POLICY,
        "sampling": SamplingConfig(),
        "max_attempts": 1,
        "seed": 0,
    }
    return plan_parts(chosen, task=task, **(given_settings | settings))


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(str(tmp_path / "run"))


class FakePool:
    """Does jobs in its own process, last ones first, and dies after some of them."""

    def __init__(self, store: RunStore, die_after: int = 10**9) -> None:
        self._store = store
        self._left = die_after
        self.done: list[str] = []

    def run(self, jobs: Sequence[PartJob]) -> Iterator[PartReport]:
        for job in reversed(jobs):
            if not self._left:
                raise StageError("replicas died")
            self._left -= 1
            made = [
                trajectory(prompt.prompt_id, index, success=index == 0)
                for prompt in job.prompts
                for index in range(job.group_size)
            ]
            self._store.write_table(job.name, trajectory_table(made))
            self.done.append(job.name)
            yield PartReport(
                name=job.name,
                num_trajectories=len(made),
                num_failures=0,
                num_turns=len(made),
                num_sampled_tokens=len(made),
                num_solved=len(job.prompts),
                duration_s=0.5,
            )


def sample(store: RunStore, pool: FakePool, jobs: Sequence[PartJob]) -> Totals:
    return sample_missing(
        store, cast(ReplicaPool, pool), jobs, stage="rollout", max_failed_frac=0.0
    )


@given(num_prompts=st.integers(1, 30), size=st.integers(1, 12))
def test_every_prompt_is_in_one_part_in_order(
    tmp_path_factory: pytest.TempPathFactory, num_prompts: int, size: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "plan"
    folder.mkdir(exist_ok=True)
    chosen = prompts(["1"] * num_prompts)
    jobs = plan(run_config(folder).task, chosen, prompts_per_part=size)
    assert [p for job in jobs for p in job.prompts] == chosen
    assert all(len(job.prompts) == size for job in jobs[:-1])
    names = [job.name for job in jobs]
    assert names == sorted(set(names))
    assert all(re.fullmatch(r"rollouts/part-\d{6}-[0-9a-f]{8}\.parquet", n) for n in names)


def test_a_job_carries_all_that_shapes_its_samples(task: Any) -> None:
    sampling = SamplingConfig(temperature=0.25)
    (job,) = plan(task, prompts(["1"]), sampling=sampling, seed=7, group_size=5)
    assert (job.sampling, job.seed, job.group_size, job.policy) == (sampling, 7, 5, POLICY)
    assert (job.environment, job.grader) == (task.environment, task.grader)


def test_names_depend_on_the_work_only(task: Any) -> None:
    chosen = prompts(["1"] * 5)
    names = [job.name for job in plan(task, chosen)]
    assert names == [job.name for job in plan(task, chosen)]
    assert not set(names) & {job.name for job in plan(task, chosen, digest="e")}
    assert not set(names) & {job.name for job in plan(task, chosen, folder="evaluation/x")}
    # Only the parts that hold other prompts get other names.
    other = [*chosen[:-1], dataclasses.replace(chosen[-1], prompt_id="other")]
    assert [job.name for job in plan(task, other)][:-1] == names[:-1]
    assert plan(task, other)[-1].name != names[-1]
    swapped = [chosen[1], chosen[0], *chosen[2:]]
    assert plan(task, swapped)[0].name != names[0]


def test_names_do_not_run_into_each_other(task: Any) -> None:
    def ids(*names: str) -> list[Prompt]:
        return [Prompt(prompt_id=name, task="t", question="q", gold="1") for name in names]

    assert plan(task, ids("ab", "c"))[0].name != plan(task, ids("a", "bc"))[0].name


def test_all_parts_are_made_and_then_none(store: RunStore, task: Any) -> None:
    jobs = plan(task, prompts(["1"] * 5))
    pool = FakePool(store)
    totals = sample(store, pool, jobs)
    assert sorted(pool.done) == store.parts("rollouts") == [job.name for job in jobs]
    assert (totals.num_trajectories, totals.num_solved, totals.num_sampled_tokens) == (15, 5, 15)
    assert totals.tokens_per_s > 0
    assert "33% solved" in str(totals)
    assert missing_jobs(store, jobs) == []
    again = FakePool(store)
    assert sample(store, again, jobs).num_trajectories == 0
    assert again.done == []
    assert str(Totals()).startswith("0 tokens/s")


def test_an_interrupted_stage_makes_exactly_what_is_missing(store: RunStore, task: Any) -> None:
    jobs = plan(task, prompts(["1"] * 7))
    first = FakePool(store, die_after=2)
    with pytest.raises(StageError):
        sample(store, first, jobs)
    assert len(first.done) == 2
    kept = {name: store.fs.cat_file(store.path(name)) for name in first.done}
    second = FakePool(store)
    assert sample(store, second, jobs).num_trajectories == 12
    assert sorted(first.done + second.done) == [job.name for job in jobs]
    assert all(store.fs.cat_file(store.path(name)) == data for name, data in kept.items())


def test_whole_groups_in_order(store: RunStore, task: Any) -> None:
    jobs = plan(task, prompts(["1"] * 3))
    sample(store, FakePool(store), jobs)
    rows = [
        (row["prompt_id"], row["trajectory_index"])
        for job in jobs
        for row in store.read_table(job.name, TRAJECTORY_SCHEMA).to_pylist()
    ]
    assert rows == [(f"p{p}", index) for p in range(3) for index in range(3)]


def test_a_truncated_part_is_refused_not_replaced(store: RunStore, task: Any) -> None:
    jobs = plan(task, prompts(["1"] * 3))
    sample(store, FakePool(store), jobs)
    path = Path(store.path(jobs[1].name))
    path.write_bytes(path.read_bytes()[:-9])
    pool = FakePool(store)
    with pytest.raises(DataError, match=path.name) as caught:
        sample(store, pool, jobs)
    assert "Delete this file" in caught.value.hint
    assert pool.done == []
    path.unlink()
    assert sample(store, pool, jobs).num_trajectories == 3
    assert pool.done == [jobs[1].name]


def test_reports_go_to_the_metrics(store: RunStore, task: Any) -> None:
    jobs = plan(task, prompts(["1"] * 3))
    pool = FakePool(store)
    sample(store, pool, jobs)
    lines = store.fs.cat_file(store.path("metrics.jsonl")).splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["name"] for record in records] == pool.done
    assert all(record["stage"] == "rollout" and record["time_s"] > 1e9 for record in records)
    assert sum(record["num_trajectories"] for record in records) == 9
