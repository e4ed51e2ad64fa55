"""Weights of parts that are weighed while others are missing are those of the finished stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from drift_ray.config import WeightingConfig
from drift_ray.errors import DataError
from drift_ray.lineage import Lineage
from drift_ray.schema import RECIPE_KEY, SOURCE_KEY, WEIGHT_SCHEMA, trajectory_table
from drift_ray.store import RunStore
from drift_ray.weighting import stage
from drift_ray.weighting.part import read_columns, return_table
from drift_ray.weighting.part_by_part import PartByPart
from drift_ray.weighting.split import weigh_all
from tests.unit.scripted import run_config, trajectory

CONFIG = WeightingConfig(beta=0.3)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(str(tmp_path))


def commit(store: RunStore, number: int, *, solved: int = 1) -> None:
    rows = [
        trajectory(f"p{number}", index, answers=["1", "2"][: 1 + index % 2], success=index < solved)
        for index in range(4)
    ]
    store.write_table(f"rollouts/part-{number}.parquet", trajectory_table(rows))


def weights(store: RunStore, number: int) -> list[float]:
    table = store.read_table(f"weights/drift/part-{number}.parquet", WEIGHT_SCHEMA)
    return list(table["importance_weight"].to_pylist())


def weights_of_the_whole_run(store: RunStore) -> list[float]:
    returns = [return_table(read_columns(store, name), CONFIG) for name in store.parts("rollouts")]
    return list(weigh_all(returns, CONFIG).importance_weight)


def times(store: RunStore) -> dict[str, int]:
    paths = Path(store.path("weights/drift")).glob("part-*")
    return {path.name: path.stat().st_mtime_ns for path in paths}


def test_every_part_is_weighed_once_as_it_comes(store: RunStore) -> None:
    commit(store, 0)
    weigher = PartByPart(store, CONFIG, digest="w")
    weigher.weigh()
    first = times(store)
    assert list(first) == ["part-0.parquet"]
    commit(store, 1, solved=3)
    weigher.weigh()
    assert first.items() < times(store).items()
    metadata = store.check_parts(store.parts("weights/drift"), WEIGHT_SCHEMA)
    assert all(SOURCE_KEY in each and RECIPE_KEY in each for each in metadata.values())
    assert weights(store, 0) + weights(store, 1) == weights_of_the_whole_run(store)

    # Another attempt at the same keeps what is there; other settings do not.
    again = times(store)
    PartByPart(store, CONFIG, digest="w").weigh()
    assert times(store) == again
    PartByPart(store, CONFIG, digest="other")
    assert times(store) == {}


def test_weights_of_what_was_sampled_anew_go(store: RunStore) -> None:
    commit(store, 0)
    commit(store, 1)
    PartByPart(store, CONFIG, digest="w").weigh()
    store.write_json("weights/drift/summary.json", {"digest": "w"})
    commit(store, 1, solved=3)
    weigher = PartByPart(store, CONFIG, digest="w")
    assert list(times(store)) == ["part-0.parquet"]
    assert not store.exists("weights/drift/summary.json")
    before = weights(store, 0)
    weigher.weigh()
    assert weights(store, 1) != before


def test_a_damaged_part_is_named(store: RunStore) -> None:
    weigher = PartByPart(store, CONFIG, digest="w")
    store.write_bytes("rollouts/part-7.parquet", b"PAR1")
    with pytest.raises(DataError, match=r"part-7\.parquet"):
        weigher.weigh()


def test_all_parts_in_this_process(store: RunStore, tmp_path: Path) -> None:
    commit(store, 0)
    commit(store, 1, solved=3)
    config = run_config(tmp_path).model_copy(update={"weighting": CONFIG})
    names = Lineage.__slots__
    lineage = Lineage(**(dict.fromkeys(names, "x") | {"weights": "w"}))
    store.write_bytes("weights/drift/part-9.parquet", b"of a part that is gone")
    summary = stage.run_here(store, config, lineage)
    assert weights(store, 0) + weights(store, 1) == weights_of_the_whole_run(store)
    assert stage.is_done(store, config, lineage)
    assert store.parts("weights/drift") == [f"weights/drift/part-{n}.parquet" for n in (0, 1)]
    assert (summary["num_parts"], summary["num_groups"], summary["num_trajectories"]) == (2, 2, 8)
