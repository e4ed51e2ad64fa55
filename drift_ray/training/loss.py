"""The importance-weighted negative log-likelihood of a micro-batch.

DRIFT (arXiv 2605.31455) fits π*(τ|x) = π_ref(τ|x) · exp(R(τ)/β) / Z(x) by maximum likelihood on
samples of π_ref: minimise E[ w(τ) · -log π_θ(τ|x) ]. Summing over the tokens of all assistant
turns is that objective; averaging over those of the last turn is its published implementation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from drift_ray.training.attention import packed_arguments
from drift_ray.training.batches import MicroBatch

MAX_LOGITS = 1 << 27
"""Logits held at once (float32: 512 MiB); further tokens wait for their turn."""


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
        """Wrap a causal language model whose logits are its hidden states times a matrix."""
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
        loss, nll = weighted_nll(
            hidden.index_select(0, positions - 1),
            self.policy.get_output_embeddings().weight,
            token_ids[positions],
            torch.from_numpy(batch.loss_weight).to(device),
        )
        kl_ref = torch.from_numpy(batch.ref_logprobs).to(device) + nll
        return LossSums(loss=loss, nll=nll.sum(), kl_ref=kl_ref.sum())


def weighted_nll(
    hidden: Tensor, matrix: Tensor, targets: Tensor, weight: Tensor, max_logits: int = MAX_LOGITS
) -> tuple[Tensor, Tensor]:
    """Weighted sum of the negative log-likelihoods of targets; float32 whatever the states are.

    The gradients are computed at once, while a chunk's logits are there: none are kept for the
    backward pass and none computed twice, so memory does not grow with tokens x vocabulary.

    Args:
        hidden: Shape ``[num_tokens, hidden_size]``.
        matrix: Shape ``[vocab_size, hidden_size]``: the output matrix.
        targets: Shape ``[num_tokens]``.
        weight: Shape ``[num_tokens]``: what each target counts.
        max_logits: Logits held at once.

    Returns:
        The sum, differentiable once in ``hidden`` and ``matrix``, and every target's negative
        log-likelihood, shape ``[num_tokens]``, which is not.
    """
    if not torch.is_grad_enabled():
        hidden, matrix = hidden.detach(), matrix.detach()
    loss, nll = _WeightedNLL.apply(hidden, matrix, targets, weight, max_logits)
    return loss, nll


class _WeightedNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, matrix: Tensor, targets: Tensor, weight: Tensor, max_logits: int
    ) -> tuple[Tensor, Tensor]:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        states, columns = hidden.to(dtype), matrix.to(dtype)
        wants_hidden, wants_matrix = ctx.needs_input_grad[:2]
        of_hidden = torch.empty_like(states) if wants_hidden else None
        of_matrix = torch.zeros_like(matrix, dtype=torch.float32) if wants_matrix else None
        nll = torch.empty_like(weight)
        num_rows = max(1, max_logits // len(matrix))
        for start in range(0, len(targets), num_rows):
            chunk = slice(start, start + num_rows)
            logits = (states[chunk] @ columns.T).float()
            own = targets[chunk, None]
            logits -= logits.amax(-1, keepdim=True)
            log_likelihood = logits.gather(-1, own)
            total = logits.exp_().sum(-1, keepdim=True)
            nll[chunk] = (total.log() - log_likelihood)[:, 0]
            if not (wants_hidden or wants_matrix):
                continue
            # d(w · NLL)/d(logits) = w · (softmax - the target's indicator)
            factor = weight[chunk, None]
            slope = logits.mul_(factor / total).scatter_add_(-1, own, -factor).to(dtype)
            if of_hidden is not None:
                torch.mm(slope, columns, out=of_hidden[chunk])
            if of_matrix is not None:
                _add_product(of_matrix, slope.T, states[chunk])
        if of_matrix is not None:
            of_matrix = of_matrix.to(matrix.dtype)
        ctx.gradients = of_hidden, of_matrix
        ctx.mark_non_differentiable(nll)
        # A product would round both under autocast.
        return (weight * nll).sum(), nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_matrix = ctx.gradients
        del ctx.gradients  # scaled in place, so good for one time
        return (
            None if of_hidden is None else of_hidden.mul_(of_loss),
            None if of_matrix is None else of_matrix.mul_(of_loss),
            *(None, None, None),
        )


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if right.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
