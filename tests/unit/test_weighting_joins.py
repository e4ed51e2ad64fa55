"""Trajectories and weights are joined by pandas, DuckDB and datasets as the README says."""

from __future__ import annotations

from pathlib import Path

import pytest

from drift_ray.config import WeightingConfig
from drift_ray.schema import trajectory_table
from drift_ray.store import RunStore
from tests.unit.scripted import trajectory
from tests.unit.weighting_cases import commit_weights

Row = tuple[str, int, int | None, float]


@pytest.fixture
def expected(tmp_path: Path) -> list[Row]:
    """A run of two parts in ``tmp_path``: prompt, index, first success turn, weight of each row."""
    store, config, rows = RunStore(str(tmp_path)), WeightingConfig(), []
    for number in range(2):
        trajectories = [
            trajectory(f"p{2 * number + g}", i, answers=["2"] * i + ["1"], success=i == g)
            for g in range(2)
            for i in range(3)
        ]
        name = f"rollouts/part-{number:06d}.parquet"
        store.write_table(name, trajectory_table(trajectories))
        weights = commit_weights(store, name, config)
        rows += [
            (t.prompt_id, t.trajectory_index, t.first_success_turn, weight)
            for t, weight in zip(trajectories, weights.tolist(), strict=True)
        ]
    # What a reader must not stumble over.
    store.write_table("rollouts/failures/part-000000.parquet", trajectory_table([]))
    store.write_json("weights/drift/summary.json", {})
    return sorted(rows, key=lambda row: row[:2])


def test_pandas(tmp_path: Path, expected: list[Row]) -> None:
    pandas = pytest.importorskip("pandas")
    rollouts, weights = (
        pandas.concat(map(pandas.read_parquet, sorted(tmp_path.glob(f"{folder}/part-*.parquet"))))
        for folder in ("rollouts", "weights/drift")
    )
    joined = rollouts.merge(weights, on=["prompt_id", "trajectory_index"], suffixes=("", "_weigh"))
    assert len(joined) == len(expected)
    joined = joined.sort_values(["prompt_id", "trajectory_index"])
    assert joined["importance_weight"].tolist() == [row[3] for row in expected]
    assert joined["first_success_turn"].fillna(0).tolist() == [row[2] or 0 for row in expected]
    assert len(joined["turns"].iloc[2]) == 3


def test_duckdb(tmp_path: Path, expected: list[Row]) -> None:
    duckdb = pytest.importorskip("duckdb")
    query = f"""
        SELECT prompt_id, trajectory_index, first_success_turn, importance_weight
        FROM '{tmp_path}/rollouts/part-*.parquet'
        JOIN '{tmp_path}/weights/drift/part-*.parquet' USING (prompt_id, trajectory_index)
        ORDER BY prompt_id, trajectory_index
    """
    assert duckdb.sql(query).fetchall() == expected


def test_datasets(tmp_path: Path, expected: list[Row]) -> None:
    datasets = pytest.importorskip("datasets")
    rollouts, weights = (
        datasets.load_dataset(
            "parquet",
            data_files=str(tmp_path / folder / "part-*.parquet"),
            split="train",
            cache_dir=str(tmp_path / "cache"),
        )
        for folder in ("rollouts", "weights/drift")
    )
    # Row by row beside each other, so they are put side by side.
    joined = datasets.concatenate_datasets(
        [rollouts, weights.select_columns(["importance_weight"])], axis=1
    )
    rows = zip(
        *(joined[name] for name in ("prompt_id", "trajectory_index", "first_success_turn")),
        joined["importance_weight"],
        strict=True,
    )
    assert sorted(rows, key=lambda row: row[:2]) == expected
