"""Attention over sequences packed back to back, under a name that transformers knows.

Tokens of several samples form one row without padding; each sees only the earlier ones of its own
sample. On CUDA with 16-bit activations PyTorch's variable-length kernel does that. Elsewhere the
row becomes a padded rectangle for the attention alone, the cheap part of a decoder: its matrix
products still see no padding.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "drift_ray_varlen"
"""What to pass as ``attn_implementation``."""

_KNOWN_ARGUMENTS = {
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "position_ids",
    "rectangle",
    "sliding_window",
    "use_cache",
    "output_attentions",
}


class Rectangle:
    """How packed tokens and a padded ``[num_samples, max_length]`` rectangle map to each other.

    Made when it is first asked for: the kernel on CUDA never does.

    Args:
        cu_lengths: Shape ``[num_samples + 1]``: where each sample begins, and the end.
        device: Of the tokens.
    """

    def __init__(self, cu_lengths: npt.NDArray[np.int32], device: torch.device) -> None:
        self._begin, self._lengths = cu_lengths[:-1, None], np.diff(cu_lengths)[:, None]
        self._columns = np.arange(self._lengths.max())
        self._device = device

    @property
    def shape(self) -> tuple[int, int]:
        """Samples, and tokens of the longest."""
        return len(self._lengths), len(self._columns)

    @cached_property
    def source(self) -> Tensor:
        """Shape ``[num_samples * max_length]``: the packed token of each cell.

        A cell without one has its sample's last.
        """
        source = self._begin + np.minimum(self._columns, self._lengths - 1)
        return torch.from_numpy(source.ravel()).to(self._device)

    @cached_property
    def cell(self) -> Tensor:
        """Shape ``[num_tokens]``: the flat cell of each packed token."""
        (cell,) = np.nonzero((self._columns < self._lengths).ravel())
        return torch.from_numpy(cell).to(self._device)


def packed_arguments(
    cu_lengths: npt.NDArray[np.int32], device: torch.device
) -> dict[str, Tensor | int | Rectangle]:
    """What a decoder passes on to its attention, beside ``position_ids``, for one packed row.

    The names are those of transformers' flash attention, so that one can be chosen instead.

    Args:
        cu_lengths: Shape ``[num_samples + 1]``: where each sample begins, and the end.
        device: Of the tokens.
    """
    bounds = torch.from_numpy(cu_lengths).to(device)
    rectangle = Rectangle(cu_lengths, device)
    return {
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": rectangle.shape[1],
        "max_length_k": rectangle.shape[1],
        "rectangle": rectangle,
    }


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sample of one packed row; an ``AttentionInterface`` function.

    Args:
        module: The layer that asks; not used.
        query: Shape ``[1, num_heads, num_tokens, head_dim]``.
        key: As ``query``, with ``num_key_value_heads``.
        value: As ``key``.
        attention_mask: None: the bounds of the samples say everything.
        scaling: Of the scores; the usual one when None.
        dropout: 0: the policy that is trained is the policy that acts.
        **arguments: :func:`packed_arguments`, and ``sliding_window`` where a model has one.

    Returns:
        Shape ``[1, num_tokens, num_heads, head_dim]``, and None in place of weights.

    Raises:
        NotImplementedError: The model wants more of its attention, such as capped scores.
    """
    more = [n for n, v in arguments.items() if v is not None and n not in _KNOWN_ARGUMENTS]
    if more or dropout or attention_mask is not None:
        raise NotImplementedError(f"attention with {more or 'a mask or dropout'}")
    window: int | None = arguments.get("sliding_window")
    query, key = query.to(value.dtype), key.to(value.dtype)
    grouped = query.shape[1] != key.shape[1]
    if value.is_cuda and value.dtype != torch.float32:
        bounds, longest = arguments["cu_seq_lens_q"], arguments["max_length_q"]
        packed = [states[0].transpose(0, 1) for states in (query, key, value)]
        # An unlimited left side and no right one is PyTorch's word for causal.
        size = (window - 1 if window else -1, 0)
        out = varlen_attn(
            *packed,
            bounds,
            bounds,
            longest,
            longest,
            scale=scaling,
            window_size=size,
            enable_gqa=grouped,
        )
        return out[None], None

    rectangle: Rectangle = arguments["rectangle"]
    query, key, value = (
        states[0].index_select(1, rectangle.source).unflatten(1, rectangle.shape).transpose(0, 1)
        for states in (query, key, value)
    )
    longest = rectangle.shape[1]
    mask = None
    if window and window < longest:
        age = torch.arange(longest, device=value.device)
        distance = age[:, None] - age
        mask = (distance >= 0) & (distance < window)
    out = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=grouped,
    )
    return out.transpose(1, 2).flatten(0, 1).index_select(0, rectangle.cell)[None], None


AttentionInterface.register(NAME, packed_attention)
