"""The card of a trained model says what it was made from, as the hub reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from drift_ray.config import RunConfig
from drift_ray.training.card import model_card
from tests.unit.scripted import run_config

SUMMARY: dict[str, Any] = {
    "digest": "0123abcd",
    "drift_ray": "9.9.9",
    "num_samples": 2000,
    "ess": 500.0,
    "num_steps": 32,
    "loss": 0.25,
    "nll": None,
    "kl_ref": 0.0,
}
REFERENCE_CARD = "---\nlicense: apache-2.0\ntags: [chat]\n---\n# The reference\n"


def card_of(config: RunConfig, reference: Path) -> str:
    return model_card(config, reference=reference, fingerprint={"weights": "feed"}, summary=SUMMARY)


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    folder = tmp_path / "a-model"
    folder.mkdir()
    (folder / "README.md").write_text(REFERENCE_CARD)
    return folder


def test_the_hub_reads_its_metadata(tmp_path: Path, reference: Path) -> None:
    config = run_config(tmp_path, "model.path=org/a-model", "weighting.beta={ess_frac: 0.4}")
    data = ModelCard(card_of(config, reference)).data
    assert data.base_model == "org/a-model"
    assert data.license == "apache-2.0"
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")


def test_it_tells_the_lineage(tmp_path: Path, reference: Path) -> None:
    config = run_config(
        tmp_path,
        f"model.path={reference}",
        "weighting.beta={ess_frac: 0.4}",
        "training.lora.rank=8",
        "training.trackers=[wandb]",
    )
    card = card_of(config, reference)
    for expected in (
        "a-model-drift-addition",
        "drift_ray\n9.9.9",
        "| its weights, hashed | `feed` |",
        "ess_frac",
        "| γ | 0.9 |",
        "| trajectories | 2,000 |",
        "| effective sample size | 500 (25%) |",
        "| digest of the training | `0123abcd` |",
        '"rank": 8',
        "| num_steps | 32 |",
        "| kl_ref | 0 |",
        "| `schedule` | constant |",
        'from_pretrained("PATH")',
    ):
        assert expected in card
    assert "| nll |" not in card
    # Nothing of this machine.
    for unexpected in (str(tmp_path), "num_cpus", "trackers", "base_model"):
        assert unexpected not in card


@pytest.mark.parametrize("text", ["no metadata", "---\n: [\n---\n", "---\njust text\n---\n", "---"])
def test_a_licence_that_cannot_be_read_is_not_claimed(
    tmp_path: Path, reference: Path, text: str
) -> None:
    (reference / "README.md").write_text(text)
    config = run_config(tmp_path, f"model.path={reference}")
    assert "license" not in card_of(config, reference)
