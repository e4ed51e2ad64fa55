"""Data on disk: one copy for a node, nothing left behind, memory that does not grow."""

from __future__ import annotations

import errno
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drift_ray.errors import StorageError
from drift_ray.schema import trajectory_table
from drift_ray.store import RunStore
from drift_ray.training.data import TrainingData, load_training_data
from drift_ray.training.shared_arrays import NodeGroup, SharedArrays
from tests.unit.training_cases import random_trajectory, weight_table, write_run


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_arrays_grow_and_what_was_mapped_stays(scratch: Path) -> None:
    arrays = SharedArrays({"a": np.int32, "b": np.bool_}, NodeGroup())
    assert list(scratch.iterdir()) == []
    assert arrays.mapped("a").shape == (0,)
    arrays.append({"a": np.arange(3, dtype=np.int32)})
    before = arrays.mapped("a")
    arrays.append({"a": np.arange(3, 5, dtype=np.int32), "b": np.ones(2, np.bool_)})
    after = arrays.mapped("a")
    assert after.tolist() == [0, 1, 2, 3, 4]
    assert arrays.loaded("b").tolist() == [True, True]
    arrays.close()
    assert before.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="read-only"):
        after[0] = 1


def test_the_processes_of_a_node_share_one_copy(scratch: Path, tmp_path: Path) -> None:
    store = write_run(tmp_path / "run")
    barrier = threading.Barrier(3, timeout=60)

    def load(local_rank: int) -> TrainingData:
        group = NodeGroup(
            local_rank=local_rank, name="one", barrier=lambda: barrier.wait() and None
        )
        return load_training_data(store, weighting="drift", loss_turns="last", group=group).train

    with ThreadPoolExecutor(3) as threads:
        loaded = list(threads.map(load, range(3)))
    alone = load_training_data(store, weighting="drift", loss_turns="last").train
    for data in loaded:
        assert data.fingerprint() == alone.fingerprint()
        assert data.longest == alone.longest
        np.testing.assert_array_equal(data.token_ids, alone.token_ids)
        np.testing.assert_array_equal(data.ref_logprobs, alone.ref_logprobs)
    assert list(scratch.iterdir()) == []


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_run(tmp_path / "run")
    real_open = open

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(
        "drift_ray.training.shared_arrays.open",
        lambda path, mode: Full(real_open(path, mode)),
        raising=False,
    )
    with pytest.raises(StorageError, match=r"No space left to write .*drift_ray-data-"):
        load_training_data(store, weighting="drift", loss_turns="last")


def test_memory_does_not_grow_with_the_trajectories(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    trajectories = [random_trajectory(rng, "p", index) for index in range(400)]
    # Every part holds the same ones: to make a table of them takes longer than all the rest.
    tables = {
        "rollouts": trajectory_table(trajectories),
        "weights/drift": weight_table(trajectories, [1.0] * 400),
    }

    def peak_bytes(num_parts: int) -> int:
        store = RunStore(str(tmp_path / str(num_parts)))
        for part in range(num_parts):
            for folder, table in tables.items():
                store.write_table(f"{folder}/part-{part:05d}.parquet", table)
        tracemalloc.start()
        try:
            data = load_training_data(store, weighting="drift", loss_turns="last").train
            assert len(data) == 400 * num_parts
            return tracemalloc.get_traced_memory()[1] - 16 * 3 * len(data)
        finally:
            tracemalloc.stop()

    peak_bytes(2)  # whatever is imported on the way
    assert peak_bytes(24) < 1.3 * peak_bytes(4)
