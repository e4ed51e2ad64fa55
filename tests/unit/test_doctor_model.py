"""The doctor on tokenizers and chat templates, good and odd."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from drift_ray.config import EnvironmentConfig, ModelConfig
from drift_ray.doctor import model
from drift_ray.doctor.findings import Finding
from drift_ray.errors import ModelError
from drift_ray.rollout.chat import ChatFormat
from tests.unit.scripted import run_config

# As templates of models that think: of old thoughts nothing is shown, and the last one is opened.
FORGETS_THOUGHTS = (
    "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' }}"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}"
    "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def with_template(tokenizer: Any, template: str) -> Any:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def drift(tokenizer: Any, environment: EnvironmentConfig) -> Finding:
    chat = ChatFormat(tokenizer, "<think>" if environment.think else "<answer>")
    return model.template_drift(tokenizer, chat, environment)


@pytest.mark.parametrize("think", [True, False])
def test_a_template_without_tricks(nano_tokenizer: Any, think: bool) -> None:
    assert drift(nano_tokenizer, EnvironmentConfig(think=think)).level == "ok"


def test_a_template_that_forgets_thoughts(nano_tokenizer: Any) -> None:
    found = drift(with_template(nano_tokenizer, FORGETS_THOUGHTS), EnvironmentConfig(think=True))
    assert found.level == "warning"
    assert "<think>" in found.message
    assert "model.history" in found.remedy


def test_a_prefill_is_a_token_of_its_own(nano_tokenizer: Any) -> None:
    messages = model.opening_messages(EnvironmentConfig())
    assert [message.role for message in messages] == ["system", "user"]
    chat = ChatFormat(nano_tokenizer, "<think>")
    assert model.prefill_boundary(nano_tokenizer, chat, messages).level == "ok"
    assert [
        message.role for message in model.opening_messages(EnvironmentConfig(system_prompt=None))
    ] == ["user"]


class Merging:
    """A tokenizer that merges the prefill with what stands before it, and loses line breaks."""

    chat_template = "yes"
    name_or_path = "merging"

    def encode(self, text: str, **_: Any) -> list[int]:
        return [len(text)]

    def decode(self, ids: list[int], **_: Any) -> str:
        return "lost"

    def apply_chat_template(self, conversation: Any, **_: Any) -> str:
        return "rendered"


def test_odd_tokenizers() -> None:
    odd = Merging()
    assert model.round_trip(odd).level == "warning"
    found = model.prefill_boundary(odd, ChatFormat(odd, "<think>"), [])
    assert found.level == "warning"


def test_round_trip(nano_tokenizer: Any) -> None:
    assert model.round_trip(nano_tokenizer).level == "ok"


def test_a_tokenizer_that_cannot_be_loaded(tmp_path: Path) -> None:
    config = run_config(tmp_path).model  # its files hold nothing of the kind
    with pytest.raises(ModelError, match="cannot load the tokenizer"):
        model.load_tokenizer(config)
    with pytest.raises(ModelError, match="no model"):
        model.load_tokenizer(ModelConfig(path="./none"))


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ({"max_position_embeddings": 8192}, ["ok", "warning"]),
        ({"max_position_embeddings": 100}, ["warning", "warning"]),
        ({}, ["ok"]),
        ([], ["ok"]),
    ],
)
def test_context_window(tmp_path: Path, described: Any, expected: list[str]) -> None:
    config = run_config(tmp_path, "evaluation.sampling.max_tokens=4096")
    (tmp_path / "m" / "config.json").write_text(json.dumps(described))
    assert [each.level.value for each in model.check_context(config)] == expected


def test_a_configuration_that_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        list(model.check_context(run_config(tmp_path)))
