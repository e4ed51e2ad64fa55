"""The policy as Hugging Face folders: the reference comes in, the trained model goes out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from drift_ray.errors import DataError, ModelError
from drift_ray.training.attention import NAME, packed_arguments
from drift_ray.training.data import TrainingData

# Everything of the reference that shapes how the model is used, beside its weights.
_COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py", "LICENSE*")
_PROBE_TOKENS = 8


def load_policy(
    folder: Path,
    data: TrainingData,
    *,
    trust_remote_code: bool,
    attention: str,
) -> PreTrainedModel:
    """Load the reference policy with float32 parameters, ready for training on ``data``.

    Args:
        folder: A Hugging Face folder.
        data: What it will be trained on; checked against its vocabulary.
        trust_remote_code: Whether the folder's own Python code may run.
        attention: ``training.attention``.

    Raises:
        ModelError: It does not load, or its logits are more than hidden states times a matrix.
        DataError: The samples hold token ids that the model does not know.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            attn_implementation=NAME if attention == "packed" else attention,
        )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ModelError(
            f"The model in {folder} does not load for training: {error}",
            "Check that transformers loads it with AutoModelForCausalLM.from_pretrained().",
        ) from error
    vocab_size = model.get_input_embeddings().weight.shape[0]
    largest = int(data.token_ids.max(initial=0))
    if largest >= vocab_size:
        raise DataError(
            f"The rollouts hold token id {largest}, but the model in {folder} has only "
            f"{vocab_size} tokens.",
            "Train the model that made the rollouts (model.path).",
        )
    if attention != "packed":
        model.set_attn_implementation("sdpa")  # some run on GPUs only, and this is the CPU
    _check_head(model, data, folder)
    if attention != "packed":
        model.set_attn_implementation(attention)
    return model


@torch.no_grad()
def _check_head(model: PreTrainedModel, data: TrainingData, folder: Path) -> None:
    """The loss applies the output matrix itself: refuse models that scale or cap their logits."""
    model.eval()
    token_ids = data.token_ids[:_PROBE_TOKENS] if len(data) else np.zeros(1)
    probe = torch.from_numpy(token_ids[None].astype(np.int64)).to(model.device)
    packed = packed_arguments(np.array([0, probe.shape[1]], np.int32), model.device)
    try:
        hidden = model.get_decoder()(input_ids=probe, use_cache=False, **packed).last_hidden_state
        expected = model(input_ids=probe, use_cache=False, **packed).logits
    except NotImplementedError as error:
        raise ModelError(
            f"The model in {folder} needs {error}, which training.attention=packed has not.",
            "Set training.attention=flex_attention or sdpa.",
        ) from error
    matrix = model.get_output_embeddings().weight
    if not torch.allclose(hidden @ matrix.T, expected, rtol=1e-3, atol=1e-3):
        raise ModelError(
            f"The logits of {type(model).__name__} in {folder} are not its last hidden state times "
            "its output matrix (they are scaled, capped or shifted).",
            "Choose a model without logit scaling, soft-capping or bias, such as Qwen or Llama.",
        )


def export_policy(
    model: PreTrainedModel,
    state_dict: Mapping[str, Tensor],
    reference: Path,
    target: Path,
    *,
    card: str,
) -> None:
    """Write a folder that transformers and vLLM load as they load the reference.

    The weights take the reference's data type; configuration, tokenizer, chat template and
    generation defaults are the reference's own files.

    Args:
        model: Says the architecture; its parameters, which may be sharded, are not read.
        state_dict: The trained parameters, whole, on the CPU and without adapters; tied ones under
            one of their names.
        reference: The folder that training started from.
        target: A folder to write into.
        card: Text of its ``README.md``.
    """
    dtype = _stored_dtype(reference)
    weights = {name: tensor.to(dtype) for name, tensor in state_dict.items()}
    model.save_pretrained(target, state_dict=weights)
    for pattern in _COMPANIONS:
        for file in sorted(reference.glob(pattern)):
            if not file.name.endswith(".index.json"):  # lists the reference's weight files
                shutil.copyfile(file, target / file.name)
    (target / "README.md").write_text(card, encoding="utf-8")


def _stored_dtype(reference: Path) -> torch.dtype:
    # As plain JSON: AutoConfig would ask whether the folder's own code may run.
    config = json.loads((reference / "config.json").read_text())
    dtype = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
