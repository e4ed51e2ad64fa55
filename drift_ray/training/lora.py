"""Low-rank adapters (arXiv 2106.09685): y = W x + alpha/rank · B (A x), W frozen.

peft puts them into the model; they are trained and checkpointed like any parameters. There is no
dropout: the policy that is trained is the policy that acts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from drift_ray.config import LoraConfig
from drift_ray.errors import ModelError

ADAPTER = "default"
_BASE = ".base_layer."


def add_adapters(model: PreTrainedModel, lora: LoraConfig, *, seed: int) -> None:
    """Put adapters into a model, in place, and freeze everything else.

    The model acts as before: B is zero at first.

    Args:
        model: A policy without adapters.
        lora: Rank, scale and layers.
        seed: Of A, so that all workers and attempts start alike.

    Raises:
        ModelError: The model has no such layers, or they are not linear.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    hint = "Name linear layers of the model in training.lora.target_modules, or 'all-linear'."
    targets = lora.target_modules
    settings = PeftConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    output = model.get_output_embeddings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(settings, model, adapter_name=ADAPTER)
        except ValueError as error:
            raise ModelError(
                f"No adapters fit training.lora.target_modules={targets}: {error}", hint
            ) from error
    if model.get_output_embeddings() is not output:
        # Its weight may be the embedding's too, and the loss applies it by itself.
        raise ModelError("training.lora.target_modules names the output matrix.", hint)
    for name, module in model.named_modules():
        base = getattr(module, "base_layer", None)
        if base is not None and not isinstance(base, nn.Linear):
            raise ModelError(f"training.lora.target_modules: {name} is not linear.", hint)


def merge_adapters(state_dict: dict[str, Tensor], lora: LoraConfig) -> dict[str, Tensor]:
    """Add adapters to the matrices they belong to: W + alpha/rank · B A.

    Works on a gathered state dict, for which no rank has to hold the model.

    Args:
        state_dict: Of a model with adapters, whole tensors on one device.
        lora: What they were made with.

    Returns:
        A state dict of the model without adapters; other tensors are shared with the given one.
    """
    merged = {}
    for name, tensor in state_dict.items():
        if ".lora_" in name:
            continue
        if name.endswith(f"{_BASE}weight"):
            layer = name.removesuffix(f"{_BASE}weight")
            low, high = (state_dict[f"{layer}.lora_{m}.{ADAPTER}.weight"] for m in "AB")
            tensor = tensor + (lora.alpha / lora.rank) * (high @ low)
        merged[name.replace(_BASE, ".")] = tensor
    return merged
