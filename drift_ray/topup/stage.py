"""Sample more trajectories of the prompts that need them, beside those that are there.

New parts lie in ``rollouts/`` under names of their own, a function of the round and its prompts.
Trajectory indices go on where their group ends, so the seed rule gives every new trajectory samples
of its own, and a group is spread over parts. Everything after the rollouts is due again then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from drift_ray.config import RunConfig, WeightingConfig
from drift_ray.lineage import digest
from drift_ray.rollout.pool import ReplicaPool
from drift_ray.rollout.sampling import PartPlan, sample_missing
from drift_ray.rollout.work import Play
from drift_ray.schema import FAILURE_SCHEMA
from drift_ray.store import FAILURES, ROLLOUTS, RunStore
from drift_ray.topup.choice import choose, next_indices, useful_ess
from drift_ray.topup.rounds import Round, read_rounds, write_rounds
from drift_ray.types import Prompt
from drift_ray.weighting.passes import read_returns, rollout_parts
from drift_ray.weighting.split import one_table, weigh_all

_KEYS = ["prompt_id", "trajectory_index"]
STAGE = "topup"


def begin(
    store: RunStore, config: RunConfig, *, rollouts: str, below_ess: float, budget: int | None
) -> Round | None:
    """The round to sample now: the one that was interrupted, else a new one.

    Args:
        store: The run directory.
        config: Of the run. Needs are judged by ``weighting`` and the recorded verdicts.
        rollouts: Digest of the run's rollouts.
        below_ess: ESS over group size below which a prompt is topped up.
        budget: Trajectories to sample at most.

    Returns:
        None if no prompt needs more.

    Raises:
        StageError: There are no rollouts.
        DataError: A rollout part is not in order.
    """
    rounds = read_rounds(store)
    if rounds and rounds[-1].report is None:
        return rounds[-1].model_copy(update={"was_interrupted": True})
    groups, rows = read_groups(store, config.weighting)
    choice = choose(
        groups, below_ess=below_ess, budget=budget, group_size=config.rollout.group_size
    )
    if not choice.prompt_ids:
        return None
    first_index = next_indices(
        rows, _failures(store), choice.prompt_ids, group_size=config.rollout.group_size
    )
    new = Round(
        number=len(rounds) + 1,
        rollouts=rollouts,
        first_index={prompt_id: first_index[prompt_id] for prompt_id in choice.prompt_ids},
        num_each=choice.num_each,
        below_ess=below_ess,
        budget=budget,
        num_unsolved=_num_unsolved(groups, choice.prompt_ids),
        ess_before=useful_ess(groups),
    )
    write_rounds(store, [*rounds, new])
    return new


def run(
    store: RunStore,
    pool: ReplicaPool,
    config: RunConfig,
    now: Round,
    prompts: Iterable[Prompt],
    play: Play,
) -> dict[str, Any]:
    """Sample what a round still lacks, and say what it brought.

    Args:
        store: The run directory.
        pool: Who samples; its replicas are ended, to make room for the weighing.
        config: Of the run.
        now: The round, as :func:`begin` gave it.
        prompts: The run's training prompts, the round's among them.
        play: How the run's own groups were played.

    Returns:
        The report that is also committed in ``topups.json``.

    Raises:
        DataError: A committed part is truncated or foreign.
        StageError: Replicas died again and again, or too many trajectories failed.
    """
    chosen = [prompt for prompt in prompts if prompt.prompt_id in now.first_index]
    rounds = read_rounds(store)
    ess_at_start = now.ess_before
    if (
        now.was_interrupted
    ):  # how long earlier attempts took is not known, nor is their gain counted
        ess_at_start = useful_ess(read_groups(store, config.weighting)[0])
    for plan in plans(now, chosen, play, prompts_per_part=config.rollout.prompts_per_part):
        totals = sample_missing(
            store, pool, plan, stage=STAGE, max_failed_frac=config.rollout.max_failed_frac
        )
        now.duration_s += totals.duration_s
    pool.stop()
    groups, rows = read_groups(store, config.weighting)
    now.report = _report(now, groups, rows, ess_at_start)
    write_rounds(store, [*rounds[:-1], now])
    return now.report


def plans(
    now: Round, prompts: Iterable[Prompt], play: Play, *, prompts_per_part: int
) -> list[PartPlan]:
    """A round's parts: one plan for all prompts that go on at the same index."""
    by_index: dict[int, list[Prompt]] = {}
    for prompt in prompts:
        by_index.setdefault(now.first_index[prompt.prompt_id], []).append(prompt)
    return [
        PartPlan(
            chosen,
            folder=ROLLOUTS,
            digest=digest(now.rollouts, STAGE, now.number, first_index, now.num_each),
            prompts_per_part=prompts_per_part,
            play=dataclasses.replace(play, group_size=now.num_each, first_index=first_index),
        )
        for first_index, chosen in sorted(by_index.items())
    ]


def read_groups(store: RunStore, config: WeightingConfig) -> tuple[pa.Table, pa.Table]:
    """All groups as they are weighed, and the keys of all trajectories.

    Returns:
        Columns ``prompt_id``, ``size``, ``num_solved``, ``ess``, one row a prompt; and columns
        ``prompt_id``, ``trajectory_index``, one row a trajectory.
    """
    recorded = config.model_copy(update={"verdicts": None})
    returns = read_returns(store, rollout_parts(store), [recorded])
    everything = one_table([table for _, table in returns.tables(0)])
    weighed = weigh_all([everything], recorded)
    # Groups are numbered as in the dictionary, which names no other ones.
    prompt_ids = everything["prompt_id"].combine_chunks().dictionary
    groups = weighed.groups.select(["size", "num_solved", "ess"])
    rows = everything.select(_KEYS)
    return groups.add_column(0, "prompt_id", prompt_ids), _plain(rows)


def _plain(rows: pa.Table) -> pa.Table:
    return rows.set_column(0, "prompt_id", rows["prompt_id"].cast(pa.string()))


def _failures(store: RunStore) -> pa.Table:
    names = store.parts(f"{ROLLOUTS}/{FAILURES}")
    tables = [store.read_table(name, FAILURE_SCHEMA, _KEYS) for name in names]
    empty = pa.table({name: pa.array([], FAILURE_SCHEMA.field(name).type) for name in _KEYS})
    return pa.concat_tables([empty, *(each.replace_schema_metadata() for each in tables)])


def _num_unsolved(groups: pa.Table, prompt_ids: Iterable[str]) -> int:
    wanted = set(prompt_ids)
    solved = zip(groups["prompt_id"].to_pylist(), groups["num_solved"].to_pylist(), strict=True)
    return sum(num == 0 and prompt_id in wanted for prompt_id, num in solved)


def _report(now: Round, groups: pa.Table, rows: pa.Table, ess_at_start: float) -> dict[str, Any]:
    # Of the round itself: failed ones are not among them.
    keys = zip(rows["prompt_id"].to_pylist(), rows["trajectory_index"].to_pylist(), strict=True)
    first = now.first_index
    num_sampled = sum(name in first and index >= first[name] for name, index in keys)
    ess_after = useful_ess(groups)
    gained = ess_after - ess_at_start
    return {
        "num_prompts": len(first),
        "num_trajectories": num_sampled,
        "num_failures": len(first) * now.num_each - num_sampled,
        "num_newly_solved": now.num_unsolved - _num_unsolved(groups, first),
        "ess_before": now.ess_before,
        "ess_after": ess_after,
        "was_interrupted": now.was_interrupted,
        "duration_s": now.duration_s,
        "ess_per_s": gained / now.duration_s if now.duration_s else None,
    }
