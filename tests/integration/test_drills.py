"""A short drill, and that its check of a run directory can fail."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drift_ray.schema import trajectory_table
from drift_ray.store import RunStore
from drift_ray.types import Trajectory
from tests.drills.outcome import Tally
from tests.drills.sampler import GROUP_SIZE, NUM_PROMPTS, undisturbed

ROOT = Path(__file__).resolve().parents[2]
NUM_KILLS, SEED = 4, 3
NUM_KILLS_OF_ALL = 6
DEADLINE_S = 280.0
NUM_TRAJECTORIES = NUM_PROMPTS * GROUP_SIZE


def drill(out: Path, num_kills: int, *arguments: str) -> tuple[str, Any]:
    """Run one in a process of its own; what it printed, and its JSON."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.drills", *arguments),
            *("--kills", str(num_kills), "--seed", str(SEED), "--out", str(out)),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout, json.loads(out.read_text())


def test_kills_at_random_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    # test_training.py kills trainers, too
    printed, found = drill(tmp_path / "drill.json", NUM_KILLS, "--rollouts-only")
    assert f"{NUM_KILLS} kills" in printed
    assert "0 lost, 0 doubled, 0 different" in printed
    assert sum(found["kills"].values()) == NUM_KILLS
    num_rounds = len(re.findall(r"^round \d+:", printed, flags=re.MULTILINE))
    assert found["num_trajectories"] == num_rounds * NUM_TRAJECTORIES > 0


@pytest.mark.slow
def test_kills_of_trainers_too_leave_the_model_of_an_undisturbed_run(tmp_path: Path) -> None:
    _, found = drill(tmp_path / "drill.json", NUM_KILLS_OF_ALL)
    assert sum(found["kills"].values()) == NUM_KILLS_OF_ALL
    assert found["kills"].get("trainer", 0) >= 1, found["kills"]
    assert (found["lost"], found["doubled"], found["different"]) == (0, 0, 0)
    assert found["num_models"] == len(found["rounds"]) >= 2
    assert found["models_different"] == 0
    assert found["num_trajectories"] == found["num_models"] * NUM_TRAJECTORIES


@pytest.fixture(scope="module")
def sampled() -> list[Trajectory]:
    return list(undisturbed(SEED))


def compared(run: Path, parts: list[list[Trajectory]], sampled: list[Trajectory]) -> Tally:
    """What is found in a run of these parts that should hold what was sampled."""
    store = RunStore(str(run))
    for number, rows in enumerate(parts):
        store.write_table(f"rollouts/part-{number:06d}.parquet", trajectory_table(rows))
    tally = Tally()
    tally.compare_trajectories(
        store, {(each.prompt_id, each.trajectory_index): each for each in sampled}
    )
    return tally


def test_an_undisturbed_run_is_clean(sampled: list[Trajectory], tmp_path: Path) -> None:
    half = NUM_TRAJECTORIES // 2
    tally = compared(tmp_path, [sampled[:half], sampled[half:]], sampled)
    assert tally.clean
    assert str(tally) == (
        f"0 kills (none), {NUM_TRAJECTORIES} trajectories: 0 lost, 0 doubled, 0 different"
    )


def test_what_is_lost_doubled_or_different_is_found(
    sampled: list[Trajectory], tmp_path: Path
) -> None:
    def found(name: str, *parts: list[Trajectory]) -> tuple[bool, int, int, int]:
        tally = compared(tmp_path / name, list(parts), sampled)
        return tally.clean, tally.num_lost, tally.num_doubled, tally.num_different

    first, rest = sampled[0], sampled[1:]
    tokens = first.token_ids.copy()
    tokens[-1] += 1
    other = dataclasses.replace(first, token_ids=tokens)
    foreign = dataclasses.replace(first, trajectory_index=GROUP_SIZE)
    assert found("lost", rest) == (False, 1, 0, 0)
    assert found("doubled in a part", [first, *sampled]) == (False, 0, 1, 0)
    assert found("doubled over parts", sampled, [first], [first]) == (False, 0, 2, 0)
    assert found("different", [other, *rest]) == (False, 0, 0, 1)
    assert found("foreign", [*sampled, foreign]) == (False, 0, 0, 1)
    assert found("exchanged", [foreign, *rest]) == (False, 1, 0, 1)
    assert found("empty") == (False, NUM_TRAJECTORIES, 0, 0)


@pytest.mark.parametrize(
    ("found", "is_same"),
    [
        ([1.0, -2.0, 0.0], True),
        ([1.0 + 9e-6, -2.0, 0.0], True),
        ([1.0, -2.0 - 4e-5, 0.0], False),
        ([1.0, -2.0, 1e-9], False),
        ([1.0, np.nan, 0.0], False),
        ([1.0, -2.0], False),
    ],
)
def test_another_model_is_found(found: list[float], is_same: bool) -> None:
    expected = {"w": np.asarray([1.0, -2.0, 0.0])}
    tally = Tally()
    tally.compare_model({"w": np.asarray(found)}, expected)
    assert tally.clean is is_same
    tally.compare_model({"v": expected["w"]}, expected)
    assert (tally.num_models, tally.num_models_different) == (2, 1 + (not is_same))
