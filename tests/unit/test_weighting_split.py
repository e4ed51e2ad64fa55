"""Groups spread over parts: any split gives the weights of the whole."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_ray.config import WeightingConfig
from drift_ray.errors import DataError
from drift_ray.weighting.diagnostics import summarize
from drift_ray.weighting.split import find_split_groups, one_table, settle, weigh_rest
from drift_ray.weighting.weigh import needs_run_beta, rows_of, solve_run_beta, weigh_groups
from tests.unit.scripted import trajectory
from tests.unit.test_diagnostics import leaves
from tests.unit.weighting_cases import Group, group_lists, records, returns_of

CONFIGS = [
    WeightingConfig(),
    WeightingConfig(beta=1e-3),
    WeightingConfig(beta=1e3),
    WeightingConfig(beta={"ess_frac": 0.6}),
    WeightingConfig(beta={"kl": 0.2, "per": "group"}, all_failed="drop"),
    WeightingConfig(method="success_only"),
    WeightingConfig(method="single_turn", clip=1.5),
    WeightingConfig(method="group_advantage", all_failed="scale"),
]


def run_beta(table: pa.Table, config: WeightingConfig) -> float | None:
    if not needs_run_beta(config):
        return None
    return solve_run_beta(
        rows_of(table),
        config.beta,  # type: ignore[arg-type]
        drop_all_failed=config.all_failed == "drop",
    )


@settings(max_examples=40)
@given(group_lists, st.sampled_from(CONFIGS), st.data())
def test_any_split_of_groups_over_parts_gives_the_same_weights(
    groups: list[Group], config: WeightingConfig, data: st.DataObject
) -> None:
    rows = records(groups)
    part_of = np.array(
        data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
    )
    whole = returns_of(rows, config)
    expected = weigh_groups(whole, config, run_beta=run_beta(whole, config))

    tables = [
        (
            f"part-{k}",
            returns_of([row for row, p in zip(rows, part_of, strict=True) if p == k], config),
        )
        for k in range(4)
    ]
    split = find_split_groups(table for _, table in tables)
    spread = {
        f"p{g}"
        for g, group in enumerate(groups)
        if len({p for r, p in zip(rows, part_of, strict=True) if r.prompt_id == f"p{g}"}) > 1
    }
    assert set(split.to_pylist()) == spread
    beta = run_beta(one_table([table for _, table in tables]), config)
    settled, statistics = {}, []
    if len(split):
        settled, weighed = settle(tables, split, config, run_beta=beta)
        statistics.append(weighed)
    for k, (name, table) in enumerate(tables):
        weight, weighed = weigh_rest(table, settled.get(name), config, run_beta=beta)
        statistics.append(weighed)
        assert weight == pytest.approx(
            expected.importance_weight[part_of == k], rel=1e-9, abs=1e-12
        )
    summary = summarize(
        pa.concat_tables([each.groups for each in statistics]),
        pa.concat_tables([each.turns for each in statistics]),
    )
    assert leaves(summary) == pytest.approx(
        leaves(summarize(expected.groups, expected.turns)), rel=1e-6, abs=1e-9
    )


def test_a_trajectory_that_stands_in_two_parts_is_refused() -> None:
    one = returns_of([trajectory("a", 0), trajectory("b", 0), trajectory("b", 1)])
    two = returns_of([trajectory("c", 0), trajectory("b", 2), trajectory("b", 1)])
    tables = [("part-1", one), ("part-2", two)]
    split = find_split_groups([one, two])
    assert split.to_pylist() == ["b"]
    with pytest.raises(
        DataError, match=r"Trajectory 1 of prompt 'b' .*part-1, row 2 and in part-2, row 2"
    ):
        settle(tables, split, WeightingConfig(), run_beta=None)


def test_beta_of_the_run_leaves_out_what_is_dropped() -> None:
    failed = [trajectory("f", i, answers=["2"] * (i + 1)) for i in range(4)]
    mixed = [trajectory("m", i, answers=["2"] * i + ["1"], success=i < 2) for i in range(4)]
    config = WeightingConfig(beta={"ess_frac": 0.7}, all_failed="drop")
    both, alone = returns_of(failed + mixed), returns_of(mixed)
    assert run_beta(both, config) == pytest.approx(run_beta(alone, config), rel=1e-9)
    kept = WeightingConfig(beta={"ess_frac": 0.7})
    assert run_beta(both, kept) != pytest.approx(run_beta(alone, kept), rel=1e-3)
    with pytest.raises(DataError, match="no trajectory"):
        run_beta(returns_of([]), config)
