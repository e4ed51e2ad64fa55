"""Train the nano model on fresh dialogues, on the assistant's tokens only.

The loss at a token is the divergence from the odds that the noise model gives to every token
that could stand there, not from the one that was drawn: the same optimum as maximum likelihood,
without the noise of the draw. It is zero when the model has become the noise model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from drift_ray.nano.dialogues import Piece, pieces, sample_dialogue
from drift_ray.nano.tokenizer import MAX_LENGTH
from drift_ray.tasks.addition import pairs

MICRO_BATCH_SIZE = 64  # dialogues; sorted by length, so little is padding


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides the trained weights, besides library versions and threads."""

    steps: int = 1250
    batch_size: int = 256
    """Dialogues a step."""
    learning_rate: float = 4e-3
    """Peak: linear warm-up over the first 5 % of the steps, then linear decay to zero."""
    weight_decay: float = 0.1
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """Dialogues of similar length, padded on the right, where causal attention cannot see."""

    token_ids: Tensor
    """int64 ``[num_dialogues, num_tokens]``."""
    is_target: Tensor
    """bool, same shape: an assistant's token."""
    target_odds: Tensor
    """float32 ``[num_targets, vocab_size]``: what could stand at each assistant's token."""


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A fresh Llama of 0.7M parameters; initialisation draws from torch's global generator."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


DrawDialogue = Callable[[random.Random], list[Piece]]
"""Draws a dialogue, cut into pieces."""


def draw_sum(rng: random.Random) -> list[Piece]:
    """A dialogue about a training sum."""
    a, b = rng.sample(rng.choice(pairs("train")), 2)
    return pieces(a, b, sample_dialogue(a, b, rng))


def batches(
    tokenizer: PreTrainedTokenizerFast, recipe: Recipe, draw: DrawDialogue = draw_sum
) -> Iterator[list[MicroBatch]]:
    """Endless batches of dialogues, each cut into micro-batches."""
    rng = random.Random(recipe.seed)
    encode = lru_cache(maxsize=None)(tokenizer.encode)
    while True:
        dialogues = (draw(rng) for _ in range(recipe.batch_size))
        examples = [[(i, odds) for text, odds in each for i in encode(text)] for each in dialogues]
        examples.sort(key=len)
        yield [
            _collate(examples[i : i + MICRO_BATCH_SIZE], tokenizer)
            for i in range(0, len(examples), MICRO_BATCH_SIZE)
        ]


def _collate(
    examples: list[list[tuple[int, dict[str, float] | None]]], tokenizer: PreTrainedTokenizerFast
) -> MicroBatch:
    token_ids = torch.full((len(examples), max(map(len, examples))), tokenizer.pad_token_id)
    is_target = torch.zeros_like(token_ids, dtype=torch.bool)
    for row, example in enumerate(examples):
        token_ids[row, : len(example)] = torch.tensor([i for i, _ in example])
        is_target[row, : len(example)] = torch.tensor([odds is not None for _, odds in example])
    targets = [odds for example in examples for _, odds in example if odds is not None]
    entries = [(n, piece, p) for n, odds in enumerate(targets) for piece, p in odds.items()]
    rows, names, values = zip(*entries, strict=True)
    target_odds = torch.zeros(len(targets), len(tokenizer))
    columns = tokenizer.convert_tokens_to_ids(list(names))
    target_odds[list(rows), columns] = torch.tensor(values)
    return MicroBatch(token_ids=token_ids, is_target=is_target, target_odds=target_odds)


def summed_loss(model: LlamaForCausalLM, batch: MicroBatch) -> Tensor:
    """KL(target odds ‖ model) in nats, summed over the assistant's tokens."""
    hidden = model.model(input_ids=batch.token_ids[:, :-1], use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[batch.is_target[:, 1:]])
    return kl_div(logits.log_softmax(-1), batch.target_odds, reduction="sum")


def train(
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    draw: DrawDialogue = draw_sum,
    model: LlamaForCausalLM | None = None,
) -> LlamaForCausalLM:
    """Train a model, a fresh one unless given.

    ``on_step`` gets the step just done and its mean loss (nats a token).
    """
    torch.manual_seed(recipe.seed)
    model = (model or build_model(tokenizer)).train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    warmup = max(1, recipe.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, (recipe.steps - step) / (recipe.steps - warmup + 1)),
    )
    for step, batch in zip(range(recipe.steps), batches(tokenizer, recipe, draw), strict=False):
        num_targets = sum(len(micro.target_odds) for micro in batch)
        total = 0.0
        for micro in batch:
            loss = summed_loss(model, micro) / num_targets
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        on_step(step, total)
    return model.eval()
