"""The training stage on Ray Train: two workers, one of them killed, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from ray.util.placement_group import (
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from safetensors import SafetensorError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from drift_ray.config import (
    EarlyStoppingConfig,
    LoraConfig,
    ModelConfig,
    PromptsConfig,
    RunConfig,
    TaskConfig,
    TrainingConfig,
    WorkerRange,
)
from drift_ray.errors import DataError, StageError, StorageError
from drift_ray.nano.tokenizer import build_tokenizer
from drift_ray.store import RunStore
from drift_ray.training import stage
from drift_ray.training.data import load_training_data
from drift_ray.training.failures import release_workers, worker_places
from drift_ray.training.loop import train
from drift_ray.training.loss import WeightedNLL
from drift_ray.training.passes import evaluate
from drift_ray.training.policy import load_policy
from tests.unit.training_cases import random_trajectory, tiny_model, write_part, write_run

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    tiny_model().save_pretrained(tmp_path / "reference")
    build_tokenizer().save_pretrained(tmp_path / "reference")
    return RunConfig(
        run=str(tmp_path / "run"),
        model=ModelConfig(path=str(tmp_path / "reference")),
        task=TaskConfig(
            name="test",
            train=PromptsConfig(source="addition"),
            test=PromptsConfig(source="addition", split="test"),
        ),
        training=TrainingConfig(
            num_workers=WorkerRange(min=2, max=2),
            strategy="fsdp",
            num_epochs=4,
            batch_size=4,
            learning_rate=1e-3,
            checkpoint_every_steps=6,
            max_failures=1,
        ),
    )


def kill_a_worker(
    checkpoints: Path, known: set[Path], killed: list[int], done: threading.Event
) -> None:
    """Kill one training worker of this process's Ray as soon as there is a new checkpoint."""
    while set(checkpoints.glob("*/checkpoint_*/state.json")) <= known:
        if done.wait(0.05):
            return
    for process in psutil.Process().children(recursive=True):
        if "RayTrainWorker" in " ".join(process.cmdline()):
            killed.append(process.pid)
            process.kill()
            return


@contextmanager
def a_worker_killed(run: Path) -> Iterator[None]:
    """Kill a worker during the block, after the next checkpoint."""
    killed: list[int] = []
    done = threading.Event()
    known = set(run.glob("checkpoints/*/checkpoint_*/state.json"))
    arguments = run / "checkpoints", known, killed, done
    killer = threading.Thread(target=kill_a_worker, args=arguments)
    killer.start()
    try:
        yield
    finally:
        done.set()
        killer.join()
    assert len(killed) == 1


def test_killed_workers_and_other_numbers_of_them_change_nothing(
    config: RunConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    store = write_run(run)  # 24 samples: 6 steps an epoch
    assert not stage.is_done(store, digest="abc")
    with a_worker_killed(run), pytest.raises(StageError, match="its process died"):
        stage.run(with_training(config, max_failures=0), store, digest="abc")
    assert not stage.is_done(store, digest="abc")
    with a_worker_killed(run):
        fewer = {"num_workers": WorkerRange(min=1, max=1), "strategy": "ddp"}
        summary = stage.run(with_training(config, **fewer), store, digest="abc")

    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == list(range(24))
    assert summary["num_steps"] == 24
    assert stage.is_done(store, digest="abc")
    assert not stage.is_done(store, digest="abd")

    # One process that nobody disturbed ends at the same parameters.
    data = load_training_data(store, weighting="drift", loss_turns="last").train
    model = load_policy(
        tmp_path / "reference",
        data,
        trust_remote_code=False,
        attention="packed",
    )
    train(model, data, config.training, seed=config.seed, digest="abc")
    trained = AutoModelForCausalLM.from_pretrained(run / "model")
    torch.testing.assert_close(trained.state_dict(), model.state_dict(), rtol=1e-5, atol=1e-6)
    before = tiny_model().state_dict()["model.norm.weight"]
    assert not torch.allclose(trained.model.norm.weight, before)


def with_training(config: RunConfig, **settings: Any) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update=settings)})


def test_adapters_on_shards_with_early_stopping(config: RunConfig, tmp_path: Path) -> None:
    settings = {
        "strategy": "fsdp",
        "lora": LoraConfig(rank=2),
        "held_out_frac": 0.4,
        "eval_every_steps": 2,
        "early_stopping": EarlyStoppingConfig(patience=2),
        "trackers": ("tensorboard",),
        "num_epochs": 40,
        "learning_rate": 1e-2,
    }
    config = config.model_copy(update={"training": config.training.model_copy(update=settings)})
    store = write_run(tmp_path / "run", num_parts=6, rows=4)  # 6 prompts
    summary = stage.run(config, store, digest="abc")

    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    measured = {r["step"] + 1: r["held_out_loss"] for r in lines if r["held_out_loss"] is not None}
    assert summary["best_step"] == min(measured, key=lambda step: measured[step])
    assert summary["held_out_loss"] == measured[summary["best_step"]]
    assert summary["num_steps"] == len(lines) == summary["best_step"] + 4 < lines[0]["num_steps"]
    assert summary["num_held_out"] + summary["num_samples"] == 24
    events = EventAccumulator(str(tmp_path / "run/tensorboard/abc")).Reload()
    assert len(events.Scalars("training/loss")) == len(lines)

    # The merged model, measured again by one process.
    split = load_training_data(store, weighting="drift", loss_turns="last", held_out_frac=0.4)
    assert split.held_out is not None
    model = load_policy(
        tmp_path / "run/model",
        split.held_out,
        trust_remote_code=False,
        attention="packed",
    )
    loss = evaluate(WeightedNLL(model), split.held_out, config.training)
    assert loss == pytest.approx(summary["held_out_loss"], rel=1e-4)


class DiesOnce:
    """Kills the training worker that unpickles it, as it is set up, unless the file is there."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return die_once, (self._marker,)


def die_once(marker: Path) -> None:
    if "RayTrainWorker" in " ".join(psutil.Process().cmdline()) and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_while_it_is_set_up_is_replaced(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = stage._trainer

    def with_death(*arguments: Any) -> Any:
        made = trainer(*arguments)
        made.train_loop_config["dies"] = DiesOnce(tmp_path / "died")
        return made

    monkeypatch.setattr(stage, "_trainer", with_death)
    settings = {"num_workers": WorkerRange(min=1, max=1), "strategy": "ddp", "num_epochs": 1}
    store = write_run(tmp_path / "run")
    assert stage.run(with_training(config, **settings), store, digest="abc")["num_steps"] == 6
    assert (tmp_path / "died").exists()
    assert all(group["state"] == "REMOVED" for group in placement_group_table().values())


def test_places_that_ray_train_forgot_are_freed() -> None:
    somebodys = placement_group([{"CPU": 1}])
    before = worker_places()
    forgotten, ours = (
        placement_group([{"CPU": 1}], name=name) for name in ("", "a replica of the same job")
    )
    groups = (forgotten, ours, somebodys)
    assert all(group.wait(60) for group in groups)
    release_workers(before)
    states = [placement_group_table(group)["state"] for group in groups]
    remove_placement_group(ours)
    remove_placement_group(somebodys)
    assert states == ["REMOVED", "CREATED", "CREATED"]


def test_wrong_data_is_reported_as_such(config: RunConfig, tmp_path: Path) -> None:
    store = RunStore(str(tmp_path / "run"))
    rng = np.random.default_rng(0)
    write_part(store, 0, [random_trajectory(rng)], [float("nan")])
    alone = config.model_copy(
        update={
            "training": config.training.model_copy(
                update={"num_workers": WorkerRange(min=1, max=1)}
            )
        }
    )
    with pytest.raises(DataError, match=r"part-00000\.parquet, row 0"):
        stage.run(alone, store, digest="abc")


def test_a_full_disk_ends_the_training_at_once(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = stage._work

    def work_on_a_full_disk(job: dict[str, Any]) -> None:
        from torch.distributed.checkpoint import HuggingFaceStorageWriter as Writer

        real_write = Writer.write_data

        def write_data(*args: Any) -> Any:
            if torch.distributed.get_rank() > 0:
                return real_write(*args)
            with (tmp_path / "attempts").open("a") as file:
                file.write("x")
            raise SafetensorError("I/O error: No space left on device (os error 28)")

        Writer.write_data = write_data
        work(job)

    monkeypatch.setattr(stage, "_work", work_on_a_full_disk)
    store = write_run(tmp_path / "run")
    with pytest.raises(StorageError, match=r"No space left to write [\s\S]*Free some space"):
        stage.run(config, store, digest="abc")
    assert (tmp_path / "attempts").read_text() == "x"
