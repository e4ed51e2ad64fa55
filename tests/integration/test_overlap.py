"""Training beside the rollouts: interrupted and continued, it equals one that nobody disturbed."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from drift_ray.models import resolve_model
from drift_ray.pipeline import Pipeline
from drift_ray.training.loop import train
from drift_ray.training.policy import load_policy
from drift_ray.training.shared_arrays import NodeGroup
from drift_ray.training.waves import Wave, WaveFeed, read_waves
from tests.integration.small_run import (
    BATCH_SIZE,
    GROUP_SIZE,
    NUM_TRAIN,
    ONE_BY_ONE,
    driver_of,
    small_config,
)

OVERLAP = (*ONE_BY_ONE, "pipeline.overlap=true")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory on which the tests of this module follow one another."""
    return tmp_path_factory.mktemp("run") / "overlapped"


def recorded(run: Path) -> list[Wave]:
    pipeline = Pipeline(small_config(run, *OVERLAP))
    return read_waves(pipeline.store, pipeline.lineage.model)


def test_ctrl_c_ends_both(run: Path) -> None:
    with driver_of(run, "run", *OVERLAP) as driver:
        driver.wait_for_file("checkpoints/*/checkpoint_manager_snapshot.json")
        started = driver.descendants()
        driver.process.send_signal(signal.SIGINT)
        assert driver.wait() == 130, driver.output
    _, left = psutil.wait_procs(started, timeout=30)
    assert left == []
    assert recorded(run)
    assert not (run / "model").exists()


def test_both_go_on_and_the_model_is_that_of_the_recorded_waves(run: Path) -> None:
    before = recorded(run)
    with driver_of(run, "run", *OVERLAP) as driver:
        assert driver.wait() == 0, driver.output
    waves = recorded(run)
    assert waves[: len(before)] == before
    assert [wave.is_last for wave in waves] == [False] * (len(waves) - 1) + [True]
    parts = [part for wave in waves for part in wave.parts]
    assert sorted(parts) == sorted(f"rollouts/{path.name}" for path in run.glob("rollouts/part-*"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    steps = [line["step"] for line in lines if line["stage"] == "training"]
    assert steps == list(range(NUM_TRAIN * GROUP_SIZE // BATCH_SIZE))
    assert (run / "evaluation/trained/metrics.json").exists()

    # One process that nobody disturbed, given the same waves, ends at the same parameters.
    pipeline = Pipeline(small_config(run, *OVERLAP))
    config, digest = pipeline.config, pipeline.lineage.model
    feed = WaveFeed(pipeline.store, config, NodeGroup(), digest=digest, overlap=pipeline.overlap)
    data = feed.split.train
    model = load_policy(
        resolve_model(config.model.path),
        data,
        trust_remote_code=False,
        attention=config.training.attention,
    )
    train(model, data, config.training, seed=config.seed, digest=digest, more=feed.more())
    trained = load_file(run / "model/model.safetensors")
    parameters = dict(model.named_parameters())
    torch.testing.assert_close(
        trained, {name: parameters[name] for name in trained}, rtol=1e-3, atol=1e-4
    )


def test_a_training_that_fails_ends_the_rollouts(tmp_path: Path) -> None:
    num_prompts = 6000  # far more than are sampled while training workers start
    with driver_of(
        tmp_path / "run",
        "run",
        *OVERLAP,
        f"task.train.num_prompts={num_prompts}",
        "training.micro_batch_tokens=8",
    ) as driver:
        assert driver.wait() == 8, driver.output
        assert "more than training.micro_batch_tokens=8" in driver.output
    assert len(list(tmp_path.glob("run/rollouts/part-*"))) < num_prompts // 8
