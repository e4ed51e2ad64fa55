"""A training in rounds: its own data each, a schedule over all, and the same after an interrupt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from drift_ray.config import ModelConfig, PromptsConfig, RunConfig, TaskConfig, TrainingConfig
from drift_ray.errors import DataError
from drift_ray.nano.tokenizer import build_tokenizer
from drift_ray.store import ROUND_FILE, RunStore
from drift_ray.training.batches import BatchPlan
from drift_ray.training.checkpoint import CheckpointState, save_checkpoint
from drift_ray.training.optimizer import learning_rate
from drift_ray.training.rounds import Rounds, RoundTask, round_rate
from drift_ray.training.rounds_worker import train_rounds
from drift_ray.training.waves import read_waves
from drift_ray.training.worker import Process
from tests.unit.training_cases import random_trajectory, tiny_model, write_part

NUM_ROUNDS = 3
ROWS = (8, 0, 8)
"""Trajectories that carry weight; the second round has none."""
DIGEST = "m3"


def rounds_of(*, carries: bool) -> Rounds:
    return Rounds(
        tasks=tuple(
            RoundTask(folder=f"rounds/00{n}", weights_digest=f"w{n}", digest=f"m{n}", seed=n)
            for n in range(1, NUM_ROUNDS + 1)
        ),
        carries_optimizer=carries,
        num_trajectories=8,
    )


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A reference policy, and three rounds that are sampled and weighed."""
    tiny_model().save_pretrained(tmp_path / "reference")
    build_tokenizer().save_pretrained(tmp_path / "reference")
    store = RunStore(str(tmp_path / "run"))
    for number, num_rows in enumerate(ROWS, 1):
        subrun, rng = store.subrun(f"rounds/00{number}"), np.random.default_rng(number)
        trajectories = [random_trajectory(rng, "p", row) for row in range(8)]
        write_part(subrun, 0, trajectories, [1.0] * num_rows + [0.0] * (8 - num_rows))
        subrun.write_json("weights/drift/summary.json", {"digest": f"w{number}"})
        # What the driver commits between the rounds.
        training = {"num_samples": num_rows, "ess": float(num_rows)}
        subrun.write_json(ROUND_FILE, {"digest": "", "training": training})
    prompts = PromptsConfig(source="addition")
    return RunConfig(
        run=store.url,
        model=ModelConfig(path=str(tmp_path / "reference")),
        task=TaskConfig(name="test", train=prompts, test=prompts),
        training=TrainingConfig(
            batch_size=3, learning_rate=1e-2, checkpoint_every_steps=2, warmup_frac=0.0
        ),
    )


class Stop(Exception):
    """The process is killed."""


def train(
    config: RunConfig, *, carries: bool, stop_at: int | None = None, resume_from: Path | None = None
) -> None:
    folder = Path(config.run) / "saved"

    def save(state: CheckpointState, *trained: Any) -> None:
        save_checkpoint(folder / str(state.step), state, *trained)
        if state.step == stop_at:
            raise Stop

    train_rounds(
        config,
        RunStore(config.run),
        digest=DIGEST,
        process=Process(rank=0, local_rank=0, device=torch.device("cpu")),
        resume_from=resume_from,
        on_checkpoint=save,
        rounds=rounds_of(carries=carries),
    )


def lines(config: RunConfig) -> list[dict[str, Any]]:
    text = Path(config.run, "checkpoints", DIGEST, "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("carries", "stop_at"),
    [(True, 2), (False, 4)],
    ids=["carry, in the first round", "reset, in the last round"],
)
def test_a_training_that_was_killed_ends_like_one_that_was_not(
    config: RunConfig, *, carries: bool, stop_at: int
) -> None:
    run = Path(config.run)
    train(config, carries=carries)
    final = load_file(run / "model/model.safetensors")
    first = load_file(run / "rounds/001/model/model.safetensors")
    assert [line["round"] for line in lines(config)] == [1, 1, 1, 3, 3, 3]
    assert [line["num_samples"] for line in lines(config)] == [3, 3, 2] * 2
    summary = json.loads((run / "model/drift_ray.json").read_text())
    assert (summary["digest"], summary["num_steps"], summary["num_samples"]) == (DIGEST, 6, 16)
    # Nothing carried weight: the policy stayed as it was.
    same = load_file(run / "rounds/002/model/model.safetensors")
    torch.testing.assert_close(same, first, rtol=0, atol=0)

    for folder in ("model", "checkpoints"):
        RunStore(config.run).remove(folder)
    with pytest.raises(Stop):
        train(config, carries=carries, stop_at=stop_at)
    kept = (run / "rounds/001/model/model.safetensors").stat().st_mtime_ns
    train(config, carries=carries, resume_from=run / "saved" / str(stop_at))
    torch.testing.assert_close(
        load_file(run / "model/model.safetensors"), final, rtol=1e-5, atol=1e-7
    )
    assert [line["step"] for line in lines(config)] == list(range(6))
    assert (run / "rounds/001/model/model.safetensors").stat().st_mtime_ns == kept
    waves = read_waves(RunStore(config.run), DIGEST)
    assert [wave.is_last for wave in waves] == [False, False, True]


def test_a_policy_that_is_gone_is_made_again(config: RunConfig) -> None:
    """Other settings may have replaced it since: a checkpoint of a later round is no help then."""
    with pytest.raises(Stop):
        train(config, carries=True, stop_at=4)
    model = Path(config.run, "rounds/001/model/model.safetensors")
    first = load_file(model)
    RunStore(config.run).remove("rounds/001/model")
    train(config, carries=True, resume_from=Path(config.run, "saved", "4"))
    torch.testing.assert_close(load_file(model), first, rtol=1e-5, atol=1e-7)
    assert Path(config.run, "model/model.safetensors").exists()


def test_carrying_moments_is_not_forgetting_them(config: RunConfig) -> None:
    found = []
    for carries in (True, False):
        train(config, carries=carries)
        found.append(load_file(Path(config.run, "model/model.safetensors")))
        for folder in ("model", "checkpoints", "rounds/001/model", "rounds/002/model"):
            RunStore(config.run).remove(folder)
    differences = [float((found[0][name] - found[1][name]).abs().max()) for name in found[0]]
    assert max(differences) > 1e-4


def test_a_round_that_changed_is_refused(config: RunConfig) -> None:
    with pytest.raises(Stop):
        train(config, carries=True, stop_at=2)
    rng = np.random.default_rng(99)
    subrun = RunStore(config.run).subrun("rounds/001")
    write_part(subrun, 0, [random_trajectory(rng, "p", row) for row in range(8)], [1.0] * 8)
    with pytest.raises(DataError, match="has changed since a training began to use it"):
        train(config, carries=True, resume_from=Path(config.run, "saved", "2"))


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    schedule=st.sampled_from(["constant", "cosine", "linear"]),
    warmup_frac=st.floats(0.0, 1.0),
)
def test_one_schedule_over_rounds_of_any_size(
    sizes: list[int], schedule: str, warmup_frac: float
) -> None:
    config = TrainingConfig.model_validate(
        {
            "batch_size": 3,
            "learning_rate": 1.0,
            "schedule": schedule,
            "warmup_frac": warmup_frac,
            "num_epochs": 2,
        }
    )
    tasks = rounds_of(carries=True).tasks[:1] * len(sizes)
    rounds = Rounds(tasks=tasks, carries_optimizer=True, num_trajectories=20)
    plans = [BatchPlan(num_samples=n, batch_size=3, num_epochs=2, seed=0) for n in sizes]
    rates = [
        round_rate(step, plan, number, rounds, config)
        for number, plan in enumerate(plans)
        for step in range(plan.num_steps)
    ]
    assert all(0 < rate <= 1 for rate in rates)
    peak = int(np.argmax(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if set(sizes) == {20}:
        assert rates == [learning_rate(step, len(rates), config) for step in range(len(rates))]


def test_a_schedule_for_each_round() -> None:
    config = TrainingConfig(batch_size=2, schedule="linear", learning_rate=1.0, warmup_frac=0.0)
    plan = BatchPlan(num_samples=6, batch_size=2, num_epochs=1, seed=0)
    rounds = rounds_of(carries=False)
    first, last = (
        [round_rate(step, plan, number, rounds, config) for step in range(3)] for number in (0, 2)
    )
    assert first == last == [learning_rate(step, 3, config) for step in range(3)]
