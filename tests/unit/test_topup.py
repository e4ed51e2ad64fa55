"""Who is topped up, by how much, from which index on; and parts that keep apart."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.errors import DataError
from drift_ray.lineage import trace
from drift_ray.rollout import stage as rollout
from drift_ray.store import TOPUPS_FILE, RunStore
from drift_ray.tasks.sources import load_prompts
from drift_ray.topup.choice import choose, next_indices, useful_ess
from drift_ray.topup.rounds import Round, read_rounds, write_rounds
from drift_ray.topup.stage import plans
from tests.unit.fake_pool import FakePool
from tests.unit.scripted import prompts, run_config
from tests.unit.test_sampling import names, plan, sample

group_lists = st.lists(
    st.tuples(st.integers(1, 32), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30
)


def groups_of(rows: list[tuple[int, float, float]]) -> pa.Table:
    """From size, share that is solved, and where between 1 and the size the ESS lies."""
    return pa.table(
        {
            "prompt_id": [f"p{i}" for i in range(len(rows))],
            "size": [size for size, _, _ in rows],
            "num_solved": [int(size * solved) for size, solved, _ in rows],
            "ess": [1 + (size - 1) * spread for size, _, spread in rows],
        }
    )


@given(
    rows=group_lists,
    below_ess=st.floats(0, 1),
    budget=st.none() | st.integers(1, 200),
    group_size=st.integers(1, 16),
)
def test_the_neediest_within_the_budget(
    rows: list[tuple[int, float, float]], below_ess: float, budget: int | None, group_size: int
) -> None:
    groups = groups_of(rows)
    choice = choose(groups, below_ess=below_ess, budget=budget, group_size=group_size)
    found = {row["prompt_id"]: row for row in groups.to_pylist()}

    def is_needy(row: dict[str, float]) -> bool:
        return row["num_solved"] == 0 or row["ess"] / row["size"] < below_ess

    def need(row: dict[str, float]) -> tuple[bool, float]:
        solved = row["num_solved"] > 0
        return solved, row["ess"] / row["size"] if solved else row["size"]

    needy = [name for name, row in found.items() if is_needy(row)]
    chosen = choice.prompt_ids
    assert set(chosen) <= set(needy)
    assert [need(found[name]) for name in chosen] == sorted(need(found[name]) for name in chosen)
    assert 1 <= choice.num_each <= group_size
    if budget is None:
        assert (set(chosen), choice.num_each) == (set(needy), group_size)
        return
    assert choice.num_trajectories <= budget
    if budget >= len(needy):
        assert set(chosen) == set(needy)
    left_out = set(needy) - set(chosen)
    assert all(need(found[name]) >= max(need(found[name]) for name in chosen) for name in left_out)
    # No trajectory that the budget has room for is held back.
    full = choice.num_each == group_size
    assert full or choice.num_trajectories + len(needy) > budget


def test_groups_that_all_failed_have_no_useful_ess() -> None:
    groups = groups_of([(8, 0.0, 1.0), (8, 0.5, 0.0), (4, 1.0, 1.0)])
    assert useful_ess(groups) == 1 + 4


def keys(rows: list[tuple[str, int]]) -> pa.Table:
    names, indices = [name for name, _ in rows], [index for _, index in rows]
    return pa.table(
        {
            "prompt_id": pa.array(names, pa.string()),
            "trajectory_index": pa.array(indices, pa.int32()),
        }
    )


def test_no_index_is_used_twice() -> None:
    rows = keys([("a", 0), ("a", 3), ("b", 0), ("c", 9), ("d", 0)])
    failures = keys([("b", 6), ("c", 1)])
    found = next_indices(rows, failures, ["a", "b", "c", "e"], group_size=4)
    assert found == {"a": 4, "b": 7, "c": 10, "e": 4}


def round_of(number: int, first_index: dict[str, int], num_each: int = 2) -> Round:
    return Round(
        number=number,
        rollouts="r",
        first_index=first_index,
        num_each=num_each,
        below_ess=0.2,
        budget=None,
        num_unsolved=0,
        ess_before=1.0,
    )


def test_parts_are_named_by_their_round_and_keep_apart(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path / "run"))
    chosen = prompts(["1"] * 5)
    own = plan(chosen)
    sample(store, FakePool(store), own)
    first = round_of(1, {"p0": 3, "p1": 5, "p4": 3})
    topups = plans(first, [chosen[i] for i in (0, 1, 4)], own.play, prompts_per_part=2)
    assert [each.play.indices for each in topups] == [range(3, 5), range(5, 7)]
    assert [[p.prompt_id for part in each for p in part.prompts] for each in topups] == [
        ["p0", "p4"],
        ["p1"],
    ]
    again = plans(round_of(2, {"p0": 3}), chosen[:1], own.play, prompts_per_part=2)
    more = plans(round_of(1, {"p0": 3}, 4), chosen[:1], own.play, prompts_per_part=2)
    every = [name for each in (own, *topups, *again, *more) for name in names(each)]
    assert len(set(every)) == len(every)

    # Neither is a part of the run's own missed for them, nor are their failures its failures.
    sample(store, FakePool(store, failing=["p1"]), topups[1], max_failed_frac=1.0)
    (part,) = topups[1]
    assert own.is_done(store, max_failed_frac=0.0)
    assert not topups[0].is_done(store)
    assert own.forget_failures(store) == 0
    assert topups[1].num_failed(store, topups[1].committed(store)) == 1
    assert topups[1].forget_failures(store) == 1
    assert not store.exists(part.name)
    assert own.is_done(store)


def test_a_top_up_makes_later_stages_due_again(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    chosen = load_prompts(config.task.train, task="addition", seed=0)
    before = trace(config, chosen, chosen)
    store = RunStore(config.run)
    write_rounds(store, [round_of(1, {"p0": 2})])
    begun = trace(config, chosen, chosen)
    done = round_of(1, {"p0": 2})
    done.report = {"num_trajectories": 2}
    write_rounds(store, [done])
    assert read_rounds(store) == [done]
    after = trace(config, chosen, chosen)
    assert len({before.weights, begun.weights, after.weights}) == 3
    assert len({before.model, begun.model, after.model}) == 3
    assert before.rollouts == after.rollouts
    assert names(rollout.plan(config, before, chosen)) == names(rollout.plan(config, after, chosen))


@pytest.mark.parametrize("content", [[], {"rounds": [{"number": 1}]}, {}])
def test_damaged_rounds_are_refused(tmp_path: Path, content: object) -> None:
    store = RunStore(str(tmp_path))
    store.write_bytes(TOPUPS_FILE, json.dumps(content).encode())
    with pytest.raises(DataError, match=r"topups\.json was not written"):
        read_rounds(store)
