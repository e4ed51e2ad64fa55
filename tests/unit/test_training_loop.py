"""A training goes where its settings say, and a resumed one where the undisturbed one goes."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from transformers import PreTrainedModel

from drift_ray.config import TrainingConfig
from drift_ray.errors import StageError, StorageError
from drift_ray.training.data import TrainingData
from drift_ray.training.learner import StepMetrics
from drift_ray.training.loop import train
from drift_ray.training.monitors import count_flops
from tests.unit.training_cases import random_data, saving_to, tiny_model

CONFIG = TrainingConfig(
    batch_size=5, num_epochs=2, learning_rate=1e-2, checkpoint_every_steps=4, warmup_frac=0.2
)


@pytest.fixture
def data(tmp_path: Path) -> TrainingData:
    return random_data(tmp_path / "run")  # 24 samples: 5 steps an epoch, the last one of 4


def run(
    data: TrainingData,
    config: TrainingConfig = CONFIG,
    *,
    tied: bool = True,
    seed: int = 0,
    digest: str = "abc",
    checkpoints: Path | None = None,
    resume_from: Path | None = None,
) -> tuple[PreTrainedModel, list[StepMetrics]]:
    model, steps = tiny_model(tied=tied), []

    result = train(
        model,
        data,
        config,
        seed=seed,
        digest=digest,
        resume_from=resume_from,
        on_step=steps.append,
        on_checkpoint=saving_to(checkpoints),
    )
    assert result.last == (steps[-1] if steps else None)
    assert result.last is None or result.num_steps == result.last.step + 1
    return model, steps


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of the undisturbed training of ``data``; tests leave them as they are."""
    folder = tmp_path_factory.mktemp("checkpoints")
    run(random_data(folder / "run"), checkpoints=folder)
    return folder


@pytest.mark.parametrize("tied", [True, False])
def test_resume_equals_undisturbed(data: TrainingData, tmp_path: Path, tied: bool) -> None:
    model, steps = run(data, tied=tied, checkpoints=tmp_path)
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [4, 8, 10]

    again, rest = run(data, tied=tied, resume_from=tmp_path / "4")
    assert [m.step for m in rest] == [4, 5, 6, 7, 8, 9]
    assert [m.loss for m in rest] == [m.loss for m in steps[4:]]
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    end, nothing = run(data, tied=tied, resume_from=tmp_path / "10")
    assert nothing == []
    torch.testing.assert_close(end.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_training_learns_and_counts(data: TrainingData) -> None:
    config = CONFIG.model_copy(update={"num_epochs": 20})
    _, steps = run(data, config)
    assert [m.step for m in steps] == list(range(100))
    assert steps[-1].nll < 0.6 * steps[0].nll
    first_epoch = steps[:5]
    assert [m.num_samples for m in first_epoch] == [5, 5, 5, 5, 4]
    assert sum(m.num_tokens for m in first_epoch) == len(data.token_ids)
    assert sum(m.num_loss_tokens for m in first_epoch) == data.loss_mask.sum()
    assert all(1 <= m.ess <= m.num_samples for m in steps)


def test_micro_batches_do_not_change_the_trajectory(data: TrainingData) -> None:
    model, _ = run(data)
    other, _ = run(data, CONFIG.model_copy(update={"micro_batch_tokens": 50}))
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=1e-4, atol=1e-5)


def test_the_seed_orders_the_data(data: TrainingData) -> None:
    assert run(data, seed=1)[1][0].loss != run(data, seed=2)[1][0].loss


def test_effective_samples(data: TrainingData) -> None:
    data.importance_weight[:] = 2.0
    assert [m.ess for m in run(data)[1][:5]] == pytest.approx([5, 5, 5, 5, 4])


def test_utilisation_is_of_what_the_step_needs(
    data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {m.mfu for m in run(data)[1]} == {None}  # nobody knows what this processor can do
    monkeypatch.setattr("drift_ray.training.learner.peak_flops", lambda device: 1e12)
    _, steps = run(data, CONFIG.model_copy(update={"batch_size": len(data)}))
    flops = count_flops(tiny_model())
    assert flops is not None
    expected = flops.total(
        num_tokens=len(data.token_ids),
        num_loss_tokens=int(data.loss_mask.sum()),
        num_positions=int((data.lengths**2).sum()),
    )
    for each in steps:
        assert each.mfu == pytest.approx(expected / each.step_s / 1e12)
        assert each.peak_memory_gib > 0


def test_a_gradient_that_is_not_finite_stops(data: TrainingData) -> None:
    data.importance_weight[:] = 1e38  # its products overflow float32
    with pytest.raises(StageError, match="gradient of training step 0 is not finite"):
        run(data)


def test_resume_refuses_other_settings(data: TrainingData, checkpoints: Path) -> None:
    with pytest.raises(StageError, match="other training settings"):
        run(data, digest="abd", resume_from=checkpoints / "4")


def test_resume_refuses_other_data(data: TrainingData, checkpoints: Path) -> None:
    data.importance_weight[0] += 1
    with pytest.raises(StageError, match="other training data"):
        run(data, resume_from=checkpoints / "4")


def test_resume_refuses_another_architecture(data: TrainingData, checkpoints: Path) -> None:
    with pytest.raises(StageError, match="another architecture"):
        run(data, tied=False, resume_from=checkpoints / "4")


def test_checkpoints_are_plain_tensors_by_name(checkpoints: Path) -> None:
    folder = checkpoints / "10"
    assert {file.suffix for file in folder.iterdir()} == {".safetensors", ".json"}
    (tensors,) = folder.glob("*.safetensors")
    with safe_open(tensors, "pt") as file:
        assert set(file.keys()) == {
            f"{kind}.{name}"
            for kind in ("model", "exp_avg", "exp_avg_sq")
            for name, _ in tiny_model().named_parameters()
        }
    assert json.loads((folder / "state.json").read_text())["step"] == 10


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EIO, "Input/output error"), OSError),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), StorageError),
        (SafetensorError("I/O error: No space left on device (os error 28)"), StorageError),
    ],
)
def test_a_full_disk_is_named(
    data: TrainingData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    expected: type[Exception],
) -> None:
    def die(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(HuggingFaceStorageWriter, "write_data", die)
    with pytest.raises(expected) as raised:
        run(data, CONFIG, seed=1, checkpoints=tmp_path)
    if expected is StorageError:
        assert f"No space left to write {tmp_path / '4'}" in str(raised.value)
        assert "Free some space" in str(raised.value)
    else:
        assert raised.value is error


@pytest.mark.parametrize("file", ["state.json", "*.safetensors"])
def test_a_damaged_checkpoint_is_named(
    data: TrainingData, checkpoints: Path, tmp_path: Path, file: str
) -> None:
    shutil.copytree(checkpoints / "4", tmp_path / "4")
    (damaged,) = (tmp_path / "4").glob(file)
    damaged.write_bytes(damaged.read_bytes()[:20])
    with pytest.raises(StageError, match=rf"{tmp_path / '4'} is damaged[\s\S]*Delete"):
        run(data, resume_from=tmp_path / "4")


def test_a_sample_beyond_the_token_budget_is_refused(data: TrainingData) -> None:
    longest = data.lengths.max()
    with pytest.raises(
        StageError, match=rf"has {longest} tokens[\s\S]*micro_batch_tokens={longest}"
    ):
        run(data, CONFIG.model_copy(update={"micro_batch_tokens": int(longest) - 1}))


def test_a_checkpoint_is_due_after_some_minutes(data: TrainingData, tmp_path: Path) -> None:
    often = {"checkpoint_every_steps": 1000, "checkpoint_every_minutes": 1e-9}
    run(data, CONFIG.model_copy(update=often), checkpoints=tmp_path)
    assert len(list(tmp_path.glob("*/state.json"))) == 10
