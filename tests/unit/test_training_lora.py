"""Adapters start without effect, are all that is trained, and merge into the same function."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import LlamaForCausalLM

from drift_ray.config import LoraConfig, TrainingConfig
from drift_ray.errors import ConfigError, ModelError
from drift_ray.training import extras
from drift_ray.training.lora import add_adapters, merge_adapters
from tests.unit.training_cases import VOCAB_SIZE, tiny_model

LORA = LoraConfig(rank=3, alpha=5.0)
TOKENS = torch.arange(12)[None] % VOCAB_SIZE


def adapted(lora: LoraConfig = LORA, *, seed: int = 0, tied: bool = True) -> LlamaForCausalLM:
    model = tiny_model(tied=tied)
    add_adapters(model, lora, seed=seed)
    return model


def logits(model: LlamaForCausalLM) -> torch.Tensor:
    model.set_attn_implementation("eager")
    return model(TOKENS).logits


def disturb(model: LlamaForCausalLM) -> None:
    """As training would: nothing but what it may change."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 4)


def test_only_adapters_are_trained_and_they_start_without_effect() -> None:
    model = adapted()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".lora_" in name}
    layers = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trained}
    assert layers == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    torch.testing.assert_close(logits(model), logits(tiny_model()))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_merged_is_the_same_function(tied: bool, targets: Any) -> None:
    model = adapted(LORA.model_copy(update={"target_modules": targets}), tied=tied)
    disturb(model)
    merged = tiny_model(tied=tied, seed=1)
    merged.load_state_dict(merge_adapters(model.state_dict(), LORA))
    torch.testing.assert_close(logits(merged), logits(model))
    assert not torch.allclose(logits(merged), logits(tiny_model(tied=tied)))


def test_merging_agrees_with_peft() -> None:
    model = adapted()
    disturb(model)
    ours = merge_adapters(model.state_dict(), LORA)
    theirs = copy.deepcopy(model)
    for module in theirs.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    for name, tensor in theirs.state_dict().items():
        if ".lora_" not in name:
            torch.testing.assert_close(ours[name.replace(".base_layer.", ".")], tensor)


def test_the_seed_is_all_that_adapters_depend_on() -> None:
    first = adapted(seed=1).state_dict()
    model = tiny_model()
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    add_adapters(model, LORA, seed=1)
    torch.testing.assert_close(model.state_dict(), first, rtol=0, atol=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    name = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert not torch.equal(adapted(seed=2).state_dict()[name], first[name])


@pytest.mark.parametrize(
    ("targets", "complaint"),
    [
        (["query"], "No adapters fit"),
        (["lm_head"], "output matrix"),
        (["embed_tokens"], "embed_tokens is not linear"),
    ],
)
def test_other_layers_are_refused(targets: list[str], complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        adapted(LoraConfig(target_modules=targets))


@pytest.mark.parametrize(
    ("settings", "missing", "remedy"),
    [
        ({"lora": LORA}, "peft", r"drift-ray\[lora\]"),
        ({"trackers": ["tensorboard"]}, "tensorboard", r"drift-ray\[tensorboard\]"),
        ({"trackers": ["tensorboard", "mlflow"]}, "mlflow", "pip install mlflow"),
    ],
)
def test_a_missing_library_is_named(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], missing: str, remedy: str
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == missing else sys)
    with pytest.raises(ConfigError, match=rf"needs {missing}[\s\S]*{remedy}"):
        extras.check_installed(TrainingConfig(**settings))


def test_what_is_not_asked_for_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(extras, "find_spec", asked.append)
    extras.check_installed(TrainingConfig())
    assert asked == []
