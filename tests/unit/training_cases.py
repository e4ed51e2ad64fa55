"""A tiny random policy, and run directories with random trajectories for it to learn from."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from drift_ray.config import TrainingConfig
from drift_ray.schema import WEIGHT_SCHEMA, trajectory_table
from drift_ray.store import RunStore
from drift_ray.training.attention import NAME
from drift_ray.training.checkpoint import CheckpointState, save_checkpoint
from drift_ray.training.data import TrainingData, load_training_data
from drift_ray.training.loop import OnCheckpoint, TrainingResult, train
from drift_ray.training.lora import add_adapters
from drift_ray.training.loss import WeightedNLL
from drift_ray.training.parallel import parallelize
from drift_ray.training.passes import BatchSums, batch_gradient
from drift_ray.types import EndReason, StopReason, Trajectory, Turn

VOCAB_SIZE = 48


def tiny_model(*, tied: bool = True, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=256,
            initializer_range=0.3,  # far from uniform, so that mistakes show
            tie_word_embeddings=tied,
            dtype="float32",
            attn_implementation=NAME,
        )
    )


def random_trajectory(
    rng: np.random.Generator, prompt_id: str = "p0", trajectory_index: int = 0
) -> Trajectory:
    """One to three turns of 5 context tokens (the last is a prefill) and 1 to 9 sampled ones."""
    turns: list[Turn] = []
    is_sampled: list[bool] = []
    for turn_index in range(rng.integers(1, 4)):
        is_sampled += [False] * 5
        start = len(is_sampled)
        is_sampled += [True] * int(rng.integers(1, 10))
        turns.append(random_turn(turn_index, start, len(is_sampled)))
    num_tokens = len(is_sampled)
    return Trajectory(
        prompt_id=prompt_id,
        trajectory_index=trajectory_index,
        task="test",
        question="?",
        gold="!",
        messages=(),
        turns=tuple(turns),
        token_ids=rng.integers(0, VOCAB_SIZE, num_tokens).astype(np.int32),
        logprobs=np.where(is_sampled, rng.uniform(-4, 0, num_tokens), np.nan).astype(np.float32),
        first_success_turn=None,
        format_penalty=0.0,
        end_reason=EndReason.MAX_TURNS,
        seed=0,
    )


def random_turn(turn_index: int, token_start: int, token_end: int) -> Turn:
    return Turn(
        turn_index=turn_index,
        text="",
        canonical_text="",
        answers=(),
        answer_norms=(),
        reward=0.0,
        format_ok=False,
        stop_reason=StopReason.STOP,
        prompt_start=0,
        token_start=token_start,
        token_end=token_end,
    )


def weight_table(trajectories: Sequence[Trajectory], weights: Sequence[float]) -> pa.Table:
    columns: dict[str, object] = {
        "prompt_id": [t.prompt_id for t in trajectories],
        "trajectory_index": [t.trajectory_index for t in trajectories],
        "importance_weight": weights,
    }
    zeros = [0.0] * len(weights)
    return pa.table(
        {name: columns.get(name, zeros) for name in WEIGHT_SCHEMA.names}, schema=WEIGHT_SCHEMA
    )


def write_part(
    store: RunStore, index: int, trajectories: Sequence[Trajectory], weights: Sequence[float]
) -> None:
    name = f"part-{index:05d}.parquet"
    store.write_table(f"rollouts/{name}", trajectory_table(trajectories))
    store.write_table(f"weights/drift/{name}", weight_table(trajectories, weights))


def write_run(root: Path, *, num_parts: int = 2, rows: int = 12, seed: int = 0) -> RunStore:
    """A run directory with rollouts and weights; weights are about one on average."""
    rng = np.random.default_rng(seed)
    store = RunStore(str(root))
    for part in range(num_parts):
        trajectories = [random_trajectory(rng, f"p{part}", row) for row in range(rows)]
        write_part(store, part, trajectories, rng.exponential(size=rows).tolist())
    return store


def random_data(
    root: Path, *, loss_turns: str = "all", rows: int = 12, seed: int = 0
) -> TrainingData:
    store = write_run(root, rows=rows, seed=seed)
    return load_training_data(store, weighting="drift", loss_turns=loss_turns).train


def policy_for(config: TrainingConfig) -> LlamaForCausalLM:
    """:func:`tiny_model`, with adapters that have an effect if there should be some."""
    model = tiny_model()
    if config.lora:
        add_adapters(model, config.lora, seed=0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_B." in name:
                    parameter.copy_(torch.randn_like(parameter) / 4)
    return model


def gradient(
    data: TrainingData, config: TrainingConfig, batch: np.ndarray
) -> tuple[np.ndarray, BatchSums]:
    """Gradient of a batch on :func:`tiny_model`, flat, and the sums that go with it."""
    model = policy_for(config)
    sums = batch_gradient(parallelize(WeightedNLL(model), config), data, batch, config)
    return flat_gradient(model), sums


def flat_gradient(model: nn.Module) -> np.ndarray:
    whole = [
        p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
        for p in model.parameters()
        if p.requires_grad
    ]
    return torch.cat([gradient.flatten() for gradient in whole]).numpy()


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the order of float32 sums, whose rest is relative to the largest of them."""
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def in_processes(target: Callable[..., None], num: int, folder: Path, *arguments: object) -> None:
    """Call ``target(*arguments)`` in every process of a gloo group that meets in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    # All ranks are forked from one clean process, which imports what they need once.
    multiprocessing.set_forkserver_preload([__name__])
    mp.start_processes(
        _join_and_call,
        (num, folder, target, *arguments),
        nprocs=num,
        start_method="forkserver",
    )


def _join_and_call(
    rank: int, num: int, folder: Path, target: Callable[..., None], *arguments: object
) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num
    )
    target(folder, *arguments)
    dist.destroy_process_group()


def gradients_of_rank(
    folder: Path,
    data: TrainingData,
    configs: Mapping[str, TrainingConfig],
    batches: Sequence[np.ndarray],
) -> None:
    """Leaves this rank's gradients in ``folder``, below the name of each configuration."""
    for name, config in configs.items():
        (folder / name).mkdir(exist_ok=True)
        for number, batch in enumerate(batches):
            flat, sums = gradient(data, config, batch)
            np.savez(folder / name / f"{dist.get_rank()}-{number}.npz", gradient=flat, sums=sums)


def saving_to(folder: Path | None) -> OnCheckpoint:
    """Save every checkpoint as ``folder/STEP``; none without a folder."""

    def save(state: CheckpointState, *trained: Any) -> None:
        if folder:
            save_checkpoint(folder / str(state.step), state, *trained)

    return save


def train_rank(
    folder: Path,
    data: TrainingData,
    config: TrainingConfig,
    resume_from: Path | None,
    held_out: TrainingData | None = None,
) -> tuple[LlamaForCausalLM, TrainingResult]:
    """Trains with all ranks, or alone, and leaves the checkpoints in ``folder``."""
    model = policy_for(config)
    result = train(
        model,
        data,
        config,
        held_out=held_out,
        seed=0,
        digest="abc",
        resume_from=resume_from,
        on_checkpoint=saving_to(folder),
    )
    return model, result


def train_ranks(
    folder: Path, data: TrainingData, configs: Mapping[str, TrainingConfig], held_out: TrainingData
) -> None:
    """One training after the other, each in the folder of its configuration's name."""
    for name, config in configs.items():
        train_rank(folder / name, data, config, None, held_out)
