"""One run that is disturbed in every stage, and ends as if nobody had touched it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from tests.integration.small_run import (
    BATCH_SIZE,
    CHECKPOINT_EVERY_STEPS,
    GROUP_SIZE,
    NUM_TRAIN,
    ONE_BY_ONE,
    Driver,
    driver_of,
    read_parts,
    rollouts,
)

PARTS = "rollouts/part-*.parquet"
LATER_STAGES = {
    "weigh": "weights/drift/part-*.parquet",
    # Ray Train writes it with the first checkpoint that it would go on from.
    "train": "checkpoints/*/checkpoint_manager_snapshot.json",
    "evaluate": "evaluation/trained/part-*.parquet",
}
"""What each stage writes first."""


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


@contextmanager
def attempt(run: Path, command: str, *overrides: str) -> Iterator[Driver]:
    """A command that must leave alone what is committed."""
    before = committed(run)
    with driver_of(run, command, *ONE_BY_ONE, *overrides) as driver:
        yield driver
    assert before.items() <= committed(run).items()


def interrupt(driver: Driver) -> None:
    """Ctrl-C ends everything and says how to go on."""
    started = driver.descendants()
    driver.process.send_signal(signal.SIGINT)
    assert driver.wait() == 130, driver.output
    assert "run the same command" in driver.output
    _, left = psutil.wait_procs(started, timeout=30)
    assert left == []


def kill_the_replica(driver: Driver) -> None:
    """SIGKILL, as the kernel does when memory runs out."""
    (replica,) = (process for process in driver.descendants() if is_replica(process))
    replica.kill()


def is_replica(process: psutil.Process) -> bool:
    try:
        return "ray::ReplicaWorker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def num_parts(run: Path) -> int:
    return len(list(run.glob(PARTS)))


def lose_the_only_replica(run: Path) -> None:
    with attempt(run, "rollout", "replicas.max_restarts=0") as driver:
        driver.wait_for_file(PARTS)
        kill_the_replica(driver)
        assert driver.wait() == 8, driver.output
        assert "run the same command to go on" in driver.output


def lose_a_replica_and_interrupt_its_successor(run: Path) -> None:
    with attempt(run, "run", "replicas.max_restarts=1") as driver:
        driver.wait_for_file(PARTS, beside=num_parts(run))
        kill_the_replica(driver)
        driver.wait_for_output("starting another")
        driver.wait_for_file(PARTS, beside=num_parts(run))
        interrupt(driver)


def interrupt_later_stages(run: Path) -> None:
    for pattern in LATER_STAGES.values():
        with attempt(run, "run") as driver:
            driver.wait_for_file(pattern)
            interrupt(driver)


def test_a_run_disturbed_in_every_stage_ends_like_one_left_alone(
    finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "disturbed"
    lose_the_only_replica(run)
    lose_a_replica_and_interrupt_its_successor(run)
    interrupt_later_stages(run)
    with attempt(run, "run") as driver:
        assert driver.wait() == 0, driver.output

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
