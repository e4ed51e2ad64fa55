"""More trajectories of needy prompts, by real replicas with a modelled engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drift_ray.config import RunConfig
from drift_ray.lineage import Lineage, trace
from drift_ray.models import BUILTIN_NANO
from drift_ray.rollout import stage as rollout
from drift_ray.rollout.pool import ReplicaPool
from drift_ray.store import RunStore
from drift_ray.tasks.prompts import PromptSet
from drift_ray.tasks.sources import load_prompts
from drift_ray.topup import stage
from drift_ray.topup.rounds import read_rounds
from drift_ray.weighting import stage as weighting
from tests.modelled import modelled
from tests.unit.scripted import run_config

pytestmark = pytest.mark.usefixtures("ray_session")

NUM_PROMPTS, GROUP_SIZE, MAX_TURNS = 12, 2, 2


def setting(folder: Path, group_size: int = GROUP_SIZE) -> tuple[RunConfig, Lineage, PromptSet]:
    folder.mkdir()
    config = run_config(
        folder,
        f"model.path={BUILTIN_NANO}",
        f"task.train.num_prompts={NUM_PROMPTS}",
        f"task.environment={{think: false, system_prompt: null, max_turns: {MAX_TURNS}}}",
        f"rollout.group_size={group_size}",
        "rollout.prompts_per_part=5",
        "rollout.sampling.max_tokens=12",
        "replicas={num_replicas: 1, num_cpus: 0}",
    )
    chosen = load_prompts(config.task.train, task="addition", seed=config.seed)
    return config, trace(config, chosen, chosen), chosen


def pool_of(config: RunConfig) -> ReplicaPool:
    return ReplicaPool(config.run, config.model, config.replicas, modelled(0.0))


def sampled(store: RunStore) -> dict[tuple[str, int], dict[str, Any]]:
    tables = [pq.read_table(store.path(part)) for part in store.parts("rollouts")]
    rows = pa.concat_tables(tables).to_pylist()
    found = {(row["prompt_id"], row["trajectory_index"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def test_prompts_that_nobody_solved_get_more(
    tmp_path: Path, monkeypatch: Any, request: pytest.FixtureRequest
) -> None:
    config, lineage, chosen = setting(tmp_path / "topped")
    pool = pool_of(config)
    request.addfinalizer(pool.stop)
    store, parts = RunStore(config.run), rollout.plan(config, lineage, chosen)

    def topup(**options: Any) -> dict[str, Any] | None:
        now = stage.begin(store, config, rollouts=lineage.rollouts, **options)
        return now and stage.run(store, pool, config, now, chosen, parts.play)

    rollout.run(store, pool, config, parts)
    before = sampled(store)
    solved = {name for (name, _), row in before.items() if row["first_success_turn"]}
    unsolved = {prompt.prompt_id for prompt in chosen} - solved
    assert 2 <= len(unsolved) < NUM_PROMPTS

    budget = 2 * len(unsolved) - 1  # one each
    wanted = {"below_ess": 0.0, "budget": budget}
    with monkeypatch.context() as patch:
        patch.setattr(stage, "sample_missing", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            topup(**wanted)
    # The round that was begun is finished, whatever is asked for now.
    report = topup(below_ess=1.0, budget=None)
    assert report is not None
    after = sampled(store)
    new = after.keys() - before.keys()
    assert new == {(name, GROUP_SIZE) for name in unsolved}
    assert {after[key]["num_in_group"] for key in new} == {1}
    assert report["num_trajectories"] == report["num_prompts"] == len(unsolved) <= budget
    newly = {name for name, index in new if after[name, index]["first_success_turn"]}
    assert report["num_newly_solved"] == len(newly)
    assert report["ess_per_s"] * report["duration_s"] == pytest.approx(
        report["ess_after"] - report["ess_before"]
    )

    more = topup(below_ess=0.0, budget=None)
    assert (more is None) == (unsolved == newly)
    if more is not None:
        still = unsolved - newly
        last = sampled(store)
        indices = range(GROUP_SIZE + 1, 2 * GROUP_SIZE + 1)
        assert last.keys() - after.keys() == {(name, i) for name in still for i in indices}
        assert [each.number for each in read_rounds(store)] == [1, 2]
    assert parts.is_done(store)

    # Groups are spread over parts; they weigh as wholes.
    summary = weighting.run(store, config, trace(config, chosen, chosen))
    assert (summary["num_groups"], summary["num_split_groups"]) == (NUM_PROMPTS, len(unsolved))
    assert summary["num_trajectories"] == len(sampled(store))

    # What is sampled depends on prompt and index alone, not on when it was asked for.
    larger, its_lineage, _ = setting(tmp_path / "larger", group_size=GROUP_SIZE + 1)
    with pool_of(larger) as another:
        at_once = rollout.plan(larger, its_lineage, chosen)
        rollout.run(RunStore(larger.run), another, larger, at_once)
    at_once_rows = sampled(RunStore(larger.run))
    for key in new:
        assert at_once_rows[key]["token_ids"] == after[key]["token_ids"]


def _interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt
