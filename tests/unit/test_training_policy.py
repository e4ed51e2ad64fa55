"""What comes in must fit the loss; what goes out loads like the reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
)

from drift_ray.errors import DataError, ModelError
from drift_ray.nano.tokenizer import build_tokenizer
from drift_ray.training.data import TrainingData
from drift_ray.training.parallel import full_state_dict
from drift_ray.training.policy import export_policy, load_policy
from tests.unit.training_cases import VOCAB_SIZE, random_data, tiny_model


@pytest.fixture
def data(tmp_path: Path) -> TrainingData:
    return random_data(tmp_path / "run")


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def load(folder: Path, data: TrainingData) -> PreTrainedModel:
    return load_policy(folder, data, trust_remote_code=False, attention="packed")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_export_loads_like_the_reference(
    data: TrainingData, tmp_path: Path, tied: bool, dtype: torch.dtype
) -> None:
    reference = save(tiny_model(tied=tied).to(dtype), tmp_path / "reference")
    model = load(reference, data)
    assert model.dtype == torch.float32
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    parameters = full_state_dict(model)
    export_policy(model.to("meta"), parameters, reference, tmp_path / "out", card="# A card\n")

    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert isinstance(exported, LlamaForCausalLM)
    assert exported.dtype == dtype
    assert (exported.lm_head.weight is exported.model.embed_tokens.weight) == tied
    for name, parameter in exported.named_parameters():
        torch.testing.assert_close(parameter, expected[name].to(dtype), rtol=0, atol=0)
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (reference / name).read_bytes()
    assert (tmp_path / "out" / "README.md").read_text() == "# A card\n"
    chat = [{"role": "user", "content": "1+1=?"}]
    tokenizers = [AutoTokenizer.from_pretrained(f) for f in (reference, tmp_path / "out")]
    assert len({t.apply_chat_template(chat, tokenize=False) for t in tokenizers}) == 1
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == VOCAB_SIZE


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "float16"}, torch.float16),
        ({}, torch.float32),
    ],
)
def test_export_runs_no_code_of_the_reference(
    tmp_path: Path, stored: dict[str, str], dtype: torch.dtype
) -> None:
    reference = tmp_path / "reference"
    reference.mkdir()
    (reference / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}, **stored})
    )
    (reference / "own.py").write_text("raise SystemExit('it ran')")
    model = tiny_model()
    export_policy(model, full_state_dict(model), reference, tmp_path / "out", card="")
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {dtype}


def test_scaled_logits_are_refused(data: TrainingData, tmp_path: Path) -> None:
    config = GraniteConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        logits_scaling=8.0,
    )
    folder = save(GraniteForCausalLM(config), tmp_path / "reference")
    with pytest.raises(ModelError, match="scaled, capped"):
        load(folder, data)


def test_another_vocabulary_is_refused(data: TrainingData, tmp_path: Path) -> None:
    model = tiny_model()
    model.resize_token_embeddings(int(data.token_ids.max()))
    with pytest.raises(DataError, match=f"token id {data.token_ids.max()}"):
        load(save(model, tmp_path / "reference"), data)


def test_a_broken_folder_is_named(data: TrainingData, tmp_path: Path) -> None:
    folder = save(tiny_model(), tmp_path / "reference")
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="does not load for training"):
        load(folder, data)
