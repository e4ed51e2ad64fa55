"""The importance-weighted negative log-likelihood of a micro-batch.

DRIFT (arXiv 2605.31455) fits π*(τ|x) = π_ref(τ|x) · exp(R(τ)/β) / Z(x) by maximum likelihood on
samples of π_ref: minimise E[ w(τ) · -log π_θ(τ|x) ]. Summing over the tokens of all assistant
turns is that objective; averaging over those of the last turn is its published implementation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from drift_ray.training.attention import packed_arguments
from drift_ray.training.batches import MicroBatch

MAX_LOGITS = 1 << 26
"""Logits held at once (float32: 256 MiB): tokens beyond it are computed in further chunks."""


class LossSums(NamedTuple):
    """Sums over a micro-batch; they add up over micro-batches, accumulation steps and ranks."""

    loss: Tensor
    """Σ_i w_i · reduce_t NLL_it. The caller divides by the samples of the global batch."""
    nll: Tensor
    """Σ over loss tokens of -log π_θ."""
    kl_ref: Tensor
    """Σ over loss tokens of log π_ref - log π_θ: under π_ref's samples it estimates
    KL(π_ref ‖ π_θ) and is zero before the first step if training sees what was sampled."""


class WeightedNLL(nn.Module):
    """A policy with its loss: one forward pass, so that whatever shards or replicates sees all."""

    def __init__(self, policy: PreTrainedModel) -> None:
        """Wrap a causal language model whose logits are ``output_embeddings(decoder(tokens))``."""
        super().__init__()
        self.policy = policy

    def forward(self, batch: MicroBatch) -> LossSums:
        """Loss and metrics of one micro-batch; differentiable in ``loss``.

        Only the hidden states that predict a loss token meet the output matrix.
        """
        device = self.policy.device
        token_ids = torch.from_numpy(batch.token_ids).to(device)
        positions = torch.from_numpy(batch.loss_positions).to(device)
        hidden = self.policy.get_decoder()(
            input_ids=token_ids[None],
            position_ids=torch.from_numpy(batch.position_ids).to(device)[None],
            use_cache=False,
            **packed_arguments(batch.cu_lengths, device),
        ).last_hidden_state[0]
        nll = token_nll(
            hidden.index_select(0, positions - 1),
            self.policy.get_output_embeddings(),
            token_ids[positions],
        )
        with torch.no_grad():
            kl_ref = torch.from_numpy(batch.ref_logprobs).to(device) + nll
        weight = torch.from_numpy(batch.loss_weight).to(device)
        # A matrix product would round the weights under autocast.
        return LossSums(loss=(weight * nll).sum(), nll=nll.detach().sum(), kl_ref=kl_ref.sum())


def token_nll(
    hidden: Tensor, head: nn.Module, targets: Tensor, max_logits: int = MAX_LOGITS
) -> Tensor:
    """Negative log-likelihood of each target, float32.

    Memory does not grow with tokens x vocabulary: beyond ``max_logits`` the logits of a chunk are
    computed again in the backward pass.

    Args:
        hidden: Shape ``[num_tokens, hidden_size]``.
        head: The output matrix, ``hidden_size`` to ``vocab_size``.
        targets: Shape ``[num_tokens]``.
        max_logits: Logits held at once.

    Returns:
        Shape ``[num_tokens]``.
    """
    chunk = max(1, max_logits // head.weight.shape[0])
    if len(targets) <= chunk:
        return _chunk_nll(hidden, head, targets)
    return torch.cat(
        [
            checkpoint(_chunk_nll, some_hidden, head, some_targets, use_reentrant=False)
            for some_hidden, some_targets in zip(
                hidden.split(chunk), targets.split(chunk), strict=True
            )
        ]
    )


def _chunk_nll(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    return cross_entropy(head(hidden).float(), targets, reduction="none")
