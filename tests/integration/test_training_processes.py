"""Ranks do together what one process does alone, and the GPU benchmark needs no cluster.

All of these processes are forked from one that imports PyTorch once: it takes as long as they do,
so they have one file.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drift_ray.config import EarlyStoppingConfig, LoraConfig, TrainingConfig
from drift_ray.training.checkpoint import load_checkpoint
from drift_ray.training.data import TrainingData
from drift_ray.training.loss import WeightedNLL
from drift_ray.training.optimizer import build_optimizer
from drift_ray.training.passes import evaluate
from tests.unit.training_cases import (
    assert_same,
    gradient,
    gradients_of_rank,
    in_processes,
    random_data,
    tiny_model,
    train_rank,
    train_ranks,
)

LORA = LoraConfig(rank=3, alpha=5.0)
SETTINGS: list[tuple[int, dict[str, Any]]] = [
    (2, {"strategy": "ddp"}),
    (2, {"strategy": "fsdp"}),
    (2, {"strategy": "fsdp", "activation_checkpointing": True}),
    (4, {"strategy": "fsdp"}),
    (2, {"strategy": "ddp", "lora": LORA}),
    (2, {"strategy": "fsdp", "lora": LORA}),
]
# The second batch leaves nothing for rank 1, the third is uneven.
BATCHES = [np.arange(24), np.array([3]), np.array([1, 5, 6])]
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return random_data(tmp_path_factory.mktemp("run"))


def gradient_config(settings: dict[str, Any]) -> TrainingConfig:
    return TrainingConfig(micro_batch_tokens=100, **settings)


@pytest.fixture(scope="module")
def gradients(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gradients under all settings: one start for each number of ranks."""
    folder = tmp_path_factory.mktemp("gradients")
    for world_size in {each for each, _ in SETTINGS}:
        # Settings are numbered, and leave their gradients in folders of their own.
        configs = {
            str(number): gradient_config(settings)
            for number, (size, settings) in enumerate(SETTINGS)
            if size == world_size
        }
        in_processes(
            gradients_of_rank, world_size, folder / f"of-{world_size}", data, configs, BATCHES
        )
    return folder


@pytest.mark.parametrize("number", range(len(SETTINGS)), ids=lambda number: str(SETTINGS[number]))
def test_ranks_give_the_gradient_of_one(data: TrainingData, gradients: Path, number: int) -> None:
    world_size, settings = SETTINGS[number]
    for index, batch in enumerate(BATCHES):
        flat, sums = gradient(data, gradient_config(settings), batch)
        for rank in range(world_size):
            found = np.load(gradients / f"of-{world_size}" / str(number) / f"{rank}-{index}.npz")
            assert_same(found["gradient"], flat)
            *exact, cpu_s = found["sums"]  # seconds differ
            np.testing.assert_allclose(exact, sums[:-1], rtol=1e-5)
            assert cpu_s > 0


def test_other_numbers_of_ranks_go_on_alike(tmp_path: Path) -> None:
    """2 -> 1 -> 2 processes, sharded: the parameters of the undisturbed single one."""
    data = random_data(tmp_path / "run")  # 24 samples: 5 steps an epoch, the last one of 4
    alone = TrainingConfig(
        batch_size=5, num_epochs=2, learning_rate=1e-2, checkpoint_every_steps=4, warmup_frac=0.2
    )
    sharded = alone.model_copy(update={"strategy": "fsdp"})
    undisturbed, _ = train_rank(tmp_path / "single", data, alone, None)
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    in_processes(train_rank, 2, first, data, sharded, None)
    train_rank(second, data, alone, first / "4")
    in_processes(train_rank, 2, third, data, sharded, second / "8")
    model = tiny_model()
    load_checkpoint(
        third / "10",
        model,
        build_optimizer(model, alone),
        data=data.fingerprint(),
        digest="abc",
    )
    torch.testing.assert_close(model.state_dict(), undisturbed.state_dict(), rtol=1e-5, atol=1e-6)


def test_ranks_stop_alike(tmp_path: Path) -> None:
    # Random tokens: what is learned of some says nothing about others.
    data = random_data(tmp_path / "run")
    held_out = random_data(tmp_path / "other", rows=5, seed=1)
    alone = TrainingConfig(
        batch_size=6,
        num_epochs=10,
        learning_rate=1e-2,
        micro_batch_tokens=60,
        checkpoint_every_steps=2,
        eval_every_steps=3,
        held_out_frac=0.5,
        early_stopping=EarlyStoppingConfig(patience=2),
    )
    _, result = train_rank(tmp_path / "single", data, alone, None, held_out)
    configs = {name: alone.model_copy(update={"strategy": name}) for name in ("ddp", "fsdp")}
    in_processes(train_ranks, 2, tmp_path / "ranks", data, configs, held_out)
    for name, config in configs.items():
        folder = tmp_path / "ranks" / name
        last = max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
        state = json.loads((folder / str(last) / "state.json").read_text())
        assert last == result.num_steps
        assert state["held_out"] == pytest.approx(asdict(result.held_out), rel=1e-4)

        # One process goes on from what two have written.
        model, other = train_rank(
            tmp_path / "rest" / name, data, alone, folder / str(last), held_out
        )
        assert other.last is None
        assert other.held_out.best_step == result.held_out.best_step
        assert evaluate(WeightedNLL(model), held_out, config) == pytest.approx(
            result.held_out.best_loss, rel=1e-4
        )


def test_the_gpu_benchmark_needs_neither_ray_nor_vllm(tmp_path: Path) -> None:
    in_processes(_import_the_gpu_benchmark, 1, tmp_path)


def _import_the_gpu_benchmark(folder: Path) -> None:
    sys.path.insert(0, str(BENCHMARKS))
    import training_gpu

    assert training_gpu.TRAINERS
    assert not {"ray", "vllm"} & set(sys.modules)
