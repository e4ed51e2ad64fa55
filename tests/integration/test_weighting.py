"""The weighting stage with real Ray Data: groups over parts, errors, resuming, sweeps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drift_ray.config import RunConfig, WeightingConfig
from drift_ray.errors import DataError, StageError
from drift_ray.lineage import Lineage
from drift_ray.schema import trajectory_table
from drift_ray.store import RunStore
from drift_ray.types import Trajectory
from drift_ray.weighting import stage
from drift_ray.weighting.passes import rollout_parts
from drift_ray.weighting.sweep import SWEEP_FILE, sweep, sweep_configs
from tests.unit.scripted import trajectory

pytestmark = pytest.mark.usefixtures("ray_session")

NUM_PROMPTS, GROUP_SIZE = 12, 6


def group(prompt: int) -> list[Trajectory]:
    rng = np.random.default_rng(prompt)
    return [
        trajectory(
            f"p{prompt}",
            index,
            answers=[str(rng.integers(3)) for _ in range(rng.integers(1, 5))],
            success=bool(rng.random() < 0.6 and prompt % 5),
        )
        for index in range(GROUP_SIZE)
    ]


def write_parts(folder: Path, parts: list[list[Trajectory]]) -> RunStore:
    store = RunStore(str(folder))
    for number, rows in enumerate(parts):
        store.write_table(f"rollouts/part-{number:06d}.parquet", trajectory_table(rows))
    return store


def whole_parts() -> list[list[Trajectory]]:
    """Three prompts a part."""
    return [
        [row for prompt in range(first, first + 3) for row in group(prompt)]
        for first in range(0, NUM_PROMPTS, 3)
    ]


def split_parts() -> list[list[Trajectory]]:
    """The same trajectories; the last two of some groups stand in a part of their own."""
    parts = whole_parts()
    later = [row for part in parts for row in part if row.prompt_id in ("p1", "p2", "p10")]
    later = [row for row in later if row.trajectory_index >= GROUP_SIZE - 2]
    return [[row for row in part if row not in later] for part in parts] + [later]


def config_of(store: RunStore, **weighting: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": store.url,
            "model": {"path": "m"},
            "task": {"name": "t", "train": {"source": "addition"}, "test": {"source": "addition"}},
            "weighting": weighting,
        }
    )


def lineage(weights: str = "w") -> Lineage:
    return Lineage(
        fingerprint={},
        reference="",
        rollouts="r",
        weights=weights,
        model="",
        benchmark_bases={},
        evaluation_base="",
    )


def weights_of(store: RunStore, name: str = "drift") -> dict[tuple[str, int], float]:
    tables = [pq.read_table(store.path(part)) for part in store.parts(f"weights/{name}")]
    rows = pa.concat_tables(tables).to_pylist()
    return {(row["prompt_id"], row["trajectory_index"]): row["importance_weight"] for row in rows}


def modified(store: RunStore) -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns for path in Path(store.url).glob("weights/**/part-*")
    }


@pytest.mark.parametrize(
    "weighting", [{}, {"beta": {"ess_frac": 0.5}}, {"beta": {"kl": 0.3, "per": "group"}}]
)
def test_groups_over_several_parts_weigh_as_in_one(
    tmp_path: Path, weighting: dict[str, object]
) -> None:
    whole = write_parts(tmp_path / "whole", whole_parts())
    split = write_parts(tmp_path / "split", split_parts())
    summaries = [
        stage.run(store, config_of(store, **weighting), lineage()) for store in (whole, split)
    ]
    assert [summary["num_split_groups"] for summary in summaries] == [0, 3]
    expected = weights_of(whole)
    assert weights_of(split) == pytest.approx(expected, rel=1e-9)
    assert summaries[0]["ess_frac"]["mean"] == pytest.approx(summaries[1]["ess_frac"]["mean"])
    if "ess_frac" in str(weighting):
        assert summaries[1]["ess_frac"]["mean"] == pytest.approx(0.5, abs=1e-9)
    for store in (whole, split):
        for name in store.parts("rollouts"):
            weights = pq.read_table(store.path(name.replace("rollouts", "weights/drift")))
            part = pq.read_table(store.path(name))
            for key in ("prompt_id", "trajectory_index"):
                assert part[key].equals(weights[key])


def test_lineage_stands_in_the_summary(tmp_path: Path) -> None:
    store = write_parts(tmp_path, whole_parts())
    config = config_of(store, method="success_only")
    stage.run(store, config, lineage())
    assert stage.is_done(store, config, lineage())
    assert not stage.is_done(store, config, lineage("other"))
    summary = json.loads((tmp_path / "weights/success_only/summary.json").read_text())
    assert summary["digest"] == "w"
    assert summary["parameters"]["method"] == "success_only"
    assert set(summary["versions"]) == {"drift_ray", "schema"}
    for name, content in summary["parts"].items():
        metadata = pq.read_schema(tmp_path / "rollouts" / name).metadata
        assert metadata[b"drift_ray.content"].decode() == content


def test_an_interrupted_attempt_is_continued(tmp_path: Path) -> None:
    store = write_parts(tmp_path, split_parts())
    config = config_of(store)
    stage.run(store, config, lineage())
    before, weights = modified(store), weights_of(store)
    store.remove(stage.summary_name(config.weighting))
    store.remove("weights/drift/part-000001.parquet")
    store.write_bytes("weights/drift/part-000002.parquet", b"PAR1")
    store.write_bytes("weights/drift/part-999999.parquet", b"of a part that is no longer there")
    assert not stage.is_done(store, config, lineage())
    stage.run(store, config, lineage())
    assert stage.is_done(store, config, lineage())
    assert weights_of(store) == weights
    after = modified(store)
    assert after.keys() == before.keys()
    redone = {name for name in after if after[name] != before[name]}
    assert {Path(name).name for name in redone} == {"part-000001.parquet", "part-000002.parquet"}


def test_more_trajectories_of_a_prompt_redo_its_parts_only(tmp_path: Path) -> None:
    parts = split_parts()
    store = write_parts(tmp_path, parts[:-1])
    config = config_of(store)
    stage.run(store, config, lineage())
    before = modified(store)
    write_parts(tmp_path, parts)
    assert not stage.is_done(store, config, lineage())
    stage.run(store, config, lineage())
    after = modified(store)
    kept = {Path(name).name for name in before if after[name] == before[name]}
    assert kept == {"part-000001.parquet", "part-000002.parquet"}
    whole = write_parts(tmp_path / "whole", whole_parts())
    stage.run(whole, config_of(whole), lineage())
    assert weights_of(store) == pytest.approx(weights_of(whole), rel=1e-9)


@pytest.mark.parametrize("damage", ["nan", "truncated", "repeated"])
def test_bad_parts_are_named_and_leave_committed_weights_alone(tmp_path: Path, damage: str) -> None:
    parts = whole_parts()
    store = write_parts(tmp_path, parts)
    config = config_of(store)
    stage.run(store, config, lineage())
    before = modified(store)
    bad = "rollouts/part-000002.parquet"
    table = trajectory_table(parts[2])
    if damage == "nan":
        column = table.schema.get_field_index("format_penalty")
        values = [0.0] * 5 + [float("nan")] * (table.num_rows - 5)
        store.write_table(bad, table.set_column(column, "format_penalty", pa.array(values)))
        expected = f"{bad}, row 5: column 'format_penalty' is nan"
    elif damage == "repeated":
        store.write_table(bad, trajectory_table(parts[2] + parts[0][:1]))
        expected = "stands twice: in rollouts/part-000000.parquet, row 0"
    else:
        store.write_bytes(bad, b"PAR1")
        expected = bad
    with pytest.raises(DataError) as caught:
        stage.run(store, config, lineage("new"))
    assert expected in str(caught.value)
    assert modified(store) == before
    assert store.has_digest(stage.summary_name(config.weighting), "w")


def test_a_weighting_of_ones_own(tmp_path: Path) -> None:
    store = write_parts(tmp_path, whole_parts())
    module = "tests.unit.weighting_cases"
    config = config_of(store, method=f"{module}:first_turn_only", beta=0.5)
    stage.run(store, config, lineage())
    first = {(r.prompt_id, r.trajectory_index): r for part in whole_parts() for r in part}
    for key, weight in weights_of(store, "first_turn_only").items():
        expected = np.exp(0.5) if first[key].first_success_turn == 1 else 0.0
        assert weight == pytest.approx(expected)

    before = modified(store)
    fails = config_of(store, method=f"{module}:short_of_groups_that_failed", name="first_turn_only")
    with pytest.raises(DataError, match=r"part-\d+\.parquet: .*gave trajectory .* the weight nan"):
        stage.run(store, fails, lineage("new"))
    assert modified(store) == before
    assert store.has_digest(stage.summary_name(config.weighting), "w")


def test_a_gate_refuses_to_go_on(tmp_path: Path) -> None:
    store = write_parts(tmp_path, whole_parts())
    config = config_of(store)
    stage.run(store, config, lineage())
    stage.check(store, config.weighting)
    strict = WeightingConfig.model_validate({"gate": {"max_all_failed_frac": 0.01}})
    with pytest.raises(StageError, match=r"weighting\.gate\.max_all_failed_frac is 0\.01"):
        stage.check(store, strict)


def test_a_sweep_compares_and_commits_no_weights(tmp_path: Path) -> None:
    store = write_parts(tmp_path, split_parts())
    configs = sweep_configs(WeightingConfig(), betas=[0.05, 0.1, 1.0], gammas=[0.9, 0.5])
    rows = sweep(store, rollout_parts(store), configs)
    assert [(r["parameters"]["gamma"], r["parameters"]["beta"]) for r in rows] == [
        (gamma, beta) for gamma in (0.9, 0.5) for beta in (0.05, 0.1, 1.0)
    ]
    assert json.loads((tmp_path / SWEEP_FILE).read_text())["sweep"] == rows
    assert store.parts("weights/drift") == []
    ess = [row["ess_frac"]["mean"] for row in rows]
    assert ess[:3] == sorted(ess[:3])
    alone = stage.run(store, config_of(store, beta=0.1, gamma=0.5), lineage())
    assert rows[4]["ess_frac"]["mean"] == pytest.approx(alone["ess_frac"]["mean"])
    assert rows[4]["expected_return"] == pytest.approx(alone["expected_return"])
