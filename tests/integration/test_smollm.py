"""A few prompts of ``make demo-smollm``: a real chat model through all stages."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.compute as pc
import pytest
from transformers import AutoConfig, AutoTokenizer

from drift_ray.config_file import load_config
from drift_ray.errors import ModelError
from drift_ray.pipeline import Pipeline
from drift_ray.smollm import make
from tests.integration.small_run import ROOT, read_parts, rollouts

NUM_PROMPTS, GROUP_SIZE = 4, 2
FEW = (
    f"task.train.num_prompts={NUM_PROMPTS}",
    f"task.test.num_prompts={NUM_PROMPTS}",
    "task.environment.max_turns=2",
    "replicas.num_replicas=1",
    f"rollout.group_size={GROUP_SIZE}",
    "training.num_workers=1",
    "training.num_epochs=1",
    "training.batch_size=4",
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]


@pytest.fixture(scope="module")
def smollm() -> Path:
    folder = ROOT / "models/smollm2-135m-instruct"
    try:
        make(folder)
    except ModelError as error:
        if "cannot fetch" not in error.message:
            raise
        pytest.skip(str(error))
    return folder


def test_the_folder_is_an_ordinary_chat_model(smollm: Path) -> None:
    config = AutoConfig.from_pretrained(smollm)
    assert config.model_type == "llama"
    assert not hasattr(config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(smollm)
    assert tokenizer.encode("<|im_end|>", add_special_tokens=False) == [config.eos_token_id]
    assert "<|im_start|>assistant" in str(tokenizer.chat_template)
    assert (smollm / "generation_config.json").is_file()


def test_it_goes_through_the_whole_pipeline(smollm: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = [f"model.path={smollm}", f"run={run}", *FEW]
    Pipeline(load_config(ROOT / "jobs/configs/smollm.yaml", overrides)).run()
    table = rollouts(run)
    assert table.num_rows == NUM_PROMPTS * GROUP_SIZE
    weights = read_parts(run, "weights/drift")["importance_weight"]
    assert pc.mean(weights).as_py() == pytest.approx(1.0)
    answered = [turn["answers"] for turns in table["turns"].to_pylist() for turn in turns]
    assert any(answered), "the model does not follow the format it was shown"
    comparison = json.loads((run / "evaluation/comparison.json").read_text())
    assert comparison
    assert (run / "model/model.safetensors").is_file()
