"""What a training is measured by: effective samples, floating-point operations, peak memory.

Model FLOPs as in PaLM (arXiv 2204.02311, appendix B): 2 a multiplied-in parameter and token in the
forward pass, as many for the gradient of its input and for its own, and 12 · layers · attention
width a token and attended position. Counted is what the training needs, so that nothing flatters
it: attention is causal, which halves it (as in FlashAttention, arXiv 2205.14135), and ends at the
sample's border; the output matrix meets loss tokens only; frozen matrices have no gradient of their
own; neither recomputation nor padding counts.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

# Dense bfloat16 peaks of NVIDIA's data sheets, FLOP/s; the first name found in the device's counts.
_PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "B200": 2250e12,
    "L40S": 362e12,
}


def effective_samples(importance_weight: npt.NDArray[np.float64]) -> float:
    """(Σ|w|)² / Σw²: how many samples of equal weight tell as much; signs do not matter.

    Args:
        importance_weight: Shape ``[num_samples]``, not all 0.
    """
    size = np.abs(importance_weight)
    return float(size.sum() ** 2 / (size**2).sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFlops:
    """FLOPs of a step, forward and backward, by what it holds."""

    per_token: float
    """The decoder's matrices."""
    per_loss_token: float
    """The output matrix."""
    per_position: float
    """Attention, a token and position of its sample, before or after it."""

    def total(self, *, num_tokens: float, num_loss_tokens: float, num_positions: float) -> float:
        """FLOPs of a step.

        Args:
            num_tokens: Tokens of all samples.
            num_loss_tokens: Those with loss.
            num_positions: Sum of the squared lengths of all samples.
        """
        return (
            self.per_token * num_tokens
            + self.per_loss_token * num_loss_tokens
            + self.per_position * num_positions
        )


def count_flops(model: PreTrainedModel) -> StepFlops | None:
    """What training a model takes; None for experts and for attention that is not always full.

    Args:
        model: A decoder, with or without adapters; its parameters may be sharded.
    """
    config = model.config.get_text_config()
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return None
    decoder = [p for p in model.get_decoder().parameters() if p.ndim >= 2]
    if any(p.ndim > 2 for p in decoder):  # experts, of which a token meets some
        return None
    embedding = model.get_input_embeddings().weight
    output = model.get_output_embeddings().weight
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return StepFlops(
        per_token=sum(_flops(p) for p in decoder if p is not embedding),
        per_loss_token=_flops(output),
        per_position=12 * config.num_hidden_layers * heads * head_size / 2,
    )


def _flops(matrix: torch.nn.Parameter) -> int:
    return (6 if matrix.requires_grad else 4) * matrix.numel()


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 FLOP/s of a device; None unless it is a GPU whose figure is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in _PEAK_FLOPS.items() if known in name), None)


def peak_memory_gib(device: torch.device) -> float:
    """The most memory so far: tensors on a GPU, else the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
