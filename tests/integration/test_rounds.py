"""Rounds with real engines: every policy samples the next round, also after Ctrl-C."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import psutil
import torch
from transformers import AutoModelForCausalLM

from drift_ray.models import BUILTIN_NANO, resolve_model
from tests.integration.small_run import (
    BATCH_SIZE,
    GROUP_SIZE,
    ONE_BY_ONE,
    driver_of,
    read_parts,
)

NUM_PROMPTS = 40
ROUNDS = (
    *ONE_BY_ONE,
    "rounds.num_rounds=2",
    f"rounds.prompts_per_round={NUM_PROMPTS}",
    "weighting.method=uniform",
    "training.loss_turns=all",
    "training.learning_rate=2e-3",
)


def committed(run: Path) -> dict[str, int]:
    """What no later attempt may do again."""
    kept = [*run.glob("rounds/001/**/*"), *run.glob("rounds/002/rollouts/part-*")]
    return {str(path): path.stat().st_mtime_ns for path in kept if path.is_file()}


def largest_difference(run: Path, folder: Path) -> float:
    """Between the log-probabilities that round 2 was sampled with and those of a model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = read_parts(run, "rounds/002/rollouts").select(["token_ids", "logprobs"]).to_pylist()
    largest = 0.0
    for row in rows[:: GROUP_SIZE - 1]:
        token_ids = torch.tensor([row["token_ids"]])
        with torch.no_grad():
            scores = model(token_ids).logits[0, :-1].log_softmax(-1)
        found = scores.gather(1, token_ids[0, 1:, None])[:, 0].numpy()
        sampled = np.array(row["logprobs"], np.float32)[1:]
        largest = max(largest, float(np.nanmax(np.abs(found - sampled))))
    return largest


def test_the_policy_of_a_round_samples_the_next_one_also_after_ctrl_c(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with driver_of(run, "run", *ROUNDS) as driver:
        driver.wait_for_file("rounds/002/rollouts/part-*")
        started = driver.descendants()
        driver.process.send_signal(signal.SIGINT)
        assert driver.wait() == 130, driver.output
    _, left = psutil.wait_procs(started, timeout=30)
    assert left == []
    before = committed(run)
    assert sum("rounds/002" in name for name in before) < NUM_PROMPTS // 8

    with driver_of(run, "run", *ROUNDS) as driver:
        assert driver.wait() == 0, driver.output
    assert before.items() <= committed(run).items()
    for number in (1, 2):
        rows = read_parts(run, f"rounds/00{number}/rollouts")
        assert rows.num_rows == NUM_PROMPTS * GROUP_SIZE
    # Some parts were sampled by a replica that had played round 1, others by a new one.
    assert largest_difference(run, run / "rounds/001/model") < 1e-4
    assert largest_difference(run, resolve_model(BUILTIN_NANO)) > 1e-2

    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [line["round"] for line in lines if line["stage"] == "round"] == [1, 2]
    steps = [line["step"] for line in lines if line["stage"] == "training"]
    assert steps == list(range(2 * NUM_PROMPTS * GROUP_SIZE // BATCH_SIZE))
    assert (run / "evaluation/trained/metrics.json").exists()
