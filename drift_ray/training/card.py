"""The model card of a trained policy: what it was made from, how, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from drift_ray.config import RunConfig
from drift_ray.lineage import SAME_STEPS, redact

_CARD = """\
---
{metadata}---

# {title}

{reference}, fine-tuned for multi-turn `{task}` by DRIFT
([arXiv 2605.31455](https://arxiv.org/abs/2605.31455)): trajectories of the frozen reference policy,
weighted by their return and learned from by weighted supervised fine-tuning. Made with drift_ray
{version}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoModelForCausalLM.from_pretrained("PATH")
```

vLLM serves it with `vllm serve PATH`. Configuration, tokenizer, chat template and generation
defaults are those of the reference.

## Lineage

| | |
|---|---|
{lineage}

## Training

| | |
|---|---|
{training}
"""


def model_card(
    config: RunConfig,
    *,
    reference: Path,
    fingerprint: Mapping[str, str],
    summary: Mapping[str, Any],
) -> str:
    """Text of a trained model's ``README.md``: YAML metadata as the hub reads it, and Markdown.

    It names no path of the machine, no URL of the run directory and no secret.

    Args:
        config: The run.
        reference: Folder of the model that training started from; its licence is passed on.
        fingerprint: Hashes of the parts of that model, by their names.
        summary: What ``model/drift_ray.json`` will say.
    """
    weighting, num_samples = config.weighting, summary["num_samples"]
    reference_name = _shown(config.model.path)
    lineage = {
        "reference policy": f"`{reference_name}`",
        **{f"its {part.replace('_', ' ')}, hashed": f"`{h}`" for part, h in fingerprint.items()},
        "task": f"`{config.task.name}`, {config.task.environment.max_turns} turns",
        "weighting": f"`{weighting.method}`, weights `{weighting.name}`",
        "β": _plain(weighting.model_dump(mode="json")["beta"]),
        "γ": _plain(weighting.gamma),
        "trajectories": f"{num_samples:,}",
        "effective sample size": (
            f"{summary['ess']:,.0f} ({summary['ess'] / max(num_samples, 1):.0%})"
        ),
        "digest of the training": f"`{summary['digest']}`",
        "seed": _plain(config.seed),
    }
    settings = redact(config.training.model_dump(mode="json", exclude=SAME_STEPS))
    results = ("num_steps", "best_step", "loss", "nll", "kl_ref", "held_out_loss")
    training = {
        **{f"`{name}`": _plain(value) for name, value in settings.items()},
        **{name: _plain(summary[name]) for name in results if summary.get(name) is not None},
    }
    return _CARD.format(
        metadata=_metadata(config, reference),
        title=f"{reference_name.rsplit('/', 1)[-1]}-drift-{config.task.name}",
        reference=f"`{reference_name}`",
        task=config.task.name,
        version=summary["drift_ray"],
        lineage=_table(lineage),
        training=_table(training),
    )


def _metadata(config: RunConfig, reference: Path) -> str:
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["drift", "drift_ray"],
        **_licence(reference),
    }
    if _is_hub_id(config.model.path):
        metadata["base_model"] = config.model.path
    return yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)


def _licence(reference: Path) -> dict[str, Any]:
    """What the reference's own card says of it."""
    card = reference / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    _, *sections = text.split("---\n", 2)
    try:
        metadata = yaml.safe_load(sections[0]) if len(sections) == 2 else None
    except yaml.YAMLError:  # written by others; a licence that cannot be read is not claimed
        metadata = None
    known = metadata if isinstance(metadata, dict) else {}
    return {key: known[key] for key in ("license", "license_name", "license_link") if key in known}


def _is_hub_id(path: str) -> bool:
    return ":" not in path and not Path(path).expanduser().is_dir()


def _shown(path: str) -> str:
    """A model's name without the folders of this machine."""
    return path if _is_hub_id(path) or ":" in path else Path(path).name


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())
