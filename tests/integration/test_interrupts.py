"""Ctrl-C in every stage of one run, which then ends as if nobody had touched it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.integration.small_run import (
    BATCH_SIZE,
    CHECKPOINT_EVERY_STEPS,
    GROUP_SIZE,
    NUM_TRAIN,
    ONE_BY_ONE,
    driver_of,
    finished_run,
    read_parts,
    rollouts,
)

FIRST_FILES = {
    "rollout": "rollouts/part-*.parquet",
    "weigh": "weights/drift/part-*.parquet",
    # Ray Train writes it with the first checkpoint that it would go on from.
    "train": "checkpoints/*/checkpoint_manager_snapshot.json",
    "evaluate": "evaluation/trained/part-*.parquet",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory on which the tests of this module follow one another."""
    return tmp_path_factory.mktemp("run") / "interrupted"


@pytest.fixture(scope="module")
def finished(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory)


def training_lines(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    lines = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
    return [line for line in lines if line["stage"] == "training"]


def committed(run: Path) -> dict[str, Any]:
    """What no later attempt may do again: parts and the steps of the first checkpoint."""
    sampled = [*run.glob("rollouts/part-*"), *run.glob("evaluation/*/part-*")]
    return {
        **{str(path): path.stat().st_mtime_ns for path in sampled},
        **{f"step {line['step']}": line for line in training_lines(run)[:CHECKPOINT_EVERY_STEPS]},
    }


@pytest.mark.parametrize("pattern", FIRST_FILES.values(), ids=FIRST_FILES)
def test_interrupt_ends_everything_and_says_how_to_go_on(run: Path, pattern: str) -> None:
    before = committed(run)
    with driver_of(run, "run", *ONE_BY_ONE) as driver:
        driver.wait_for_file(pattern)
        started = driver.descendants()
        driver.process.send_signal(signal.SIGINT)
        assert driver.wait() == 130, driver.output
        assert "run the same command" in driver.output
    _, left = psutil.wait_procs(started, timeout=30)
    assert left == []
    assert before.items() <= committed(run).items()


def test_run_ends_like_one_that_was_never_interrupted(run: Path, finished: Path) -> None:
    before = committed(run)
    with driver_of(run, "run", *ONE_BY_ONE) as driver:
        assert driver.wait() == 0, driver.output
    assert before.items() <= committed(run).items()

    sampled, expected = rollouts(run), rollouts(finished)
    assert sampled.num_rows == NUM_TRAIN * GROUP_SIZE
    for column in ("prompt_id", "trajectory_index", "token_ids"):
        assert sampled[column].equals(expected[column])
    assert read_parts(run, "weights/drift").equals(read_parts(finished, "weights/drift"))

    parameters, others = (load_file(each / "model/model.safetensors") for each in (run, finished))
    torch.testing.assert_close(parameters, others, rtol=1e-5, atol=1e-6)
    steps = [line["step"] for line in training_lines(run)]
    assert steps == list(range(NUM_TRAIN * GROUP_SIZE // BATCH_SIZE))

    for name in ("reference", "trained"):
        ours, theirs = (
            json.loads((each / "evaluation" / name / "metrics.json").read_text())
            for each in (run, finished)
        )
        assert ours["success_at"] == theirs["success_at"]
