"""How good the nano model is: its distance from the noise model, and its greedy answers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from drift_ray.nano.dialogues import (
    END,
    MAX_TURNS,
    UNCLOSED,
    Reply,
    answer_distribution,
    pieces,
    rejected_answers,
    sample_dialogue,
)

MAX_NEW_TOKENS = 8

Context = tuple[int, int, list[Reply]]
"""A sum and the replies rejected so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Distance:
    """Mean distance of the model from the noise model over contexts."""

    kl: float
    """KL(noise model ‖ model), nats a reply; 0 means converged."""
    total_variation: float
    """Half the L1 distance, a probability; the model's mass on other replies included."""


def distance(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, contexts: Sequence[Context]
) -> Distance:
    """Compare the exact distributions of the next reply, given the replies so far."""
    kl = total_variation = 0.0
    for a, b, replies in contexts:
        answers = answer_distribution(a, b, rejected_answers(replies))
        expected = {
            Reply(answer=answer, closed=closed): p * (1 - UNCLOSED if closed else UNCLOSED)
            for answer, p in answers.items()
            for closed in (True, False)
        }
        log_q = _reply_log_probs(model, tokenizer, (a, b, replies), list(expected))
        both = [(p, q, math.exp(q)) for p, q in zip(expected.values(), log_q, strict=True)]
        kl += sum(p * (math.log(p) - log_q) for p, log_q, _ in both)
        elsewhere = 1 - sum(q for _, _, q in both)
        total_variation += (sum(abs(p - q) for p, _, q in both) + elsewhere) / 2
    return Distance(kl=kl / len(contexts), total_variation=total_variation / len(contexts))


@torch.inference_mode()
def _reply_log_probs(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    context: Context,
    candidates: Sequence[Reply],
) -> list[float]:
    """Log-probability of each candidate as the next reply, in nats."""
    before = encode_context(tokenizer, context)
    after = [tokenizer.encode(reply.text + END) for reply in candidates]
    longest = max(map(len, after))
    pad = tokenizer.pad_token_id
    rows = torch.tensor([before + ids + [pad] * (longest - len(ids)) for ids in after])
    log_probs = model(input_ids=rows[:, :-1], use_cache=False).logits.log_softmax(-1)
    picked = log_probs.gather(-1, rows[:, 1:, None]).squeeze(-1)[:, len(before) - 1 :]
    return [float(row[: len(ids)].sum()) for row, ids in zip(picked, after, strict=True)]


def encode_context(tokenizer: PreTrainedTokenizerFast, context: Context) -> list[int]:
    """Token ids up to and including ``<|assistant|>`` of the next reply."""
    a, b, replies = context
    empty_reply = Reply(answer="", closed=False)
    text = "".join(text for text, _ in pieces(a, b, [*replies, empty_reply]))
    return tokenizer.encode(text.removesuffix(empty_reply.text + END))


def sampled_contexts(
    sums: Sequence[tuple[int, int]], num_replies: int, seed: int = 0
) -> list[Context]:
    """For each sum, a history of so many wrong replies drawn from the noise model."""
    rng = random.Random(seed)
    contexts: list[Context] = []
    for a, b in sums:
        replies: list[Reply] = []
        while len(replies) <= num_replies:
            replies = sample_dialogue(a, b, rng)
        contexts.append((a, b, replies[:num_replies]))
    return contexts


@torch.inference_mode()
def greedy_successes(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    sums: Sequence[tuple[int, int]],
) -> list[int]:
    """How many of the sums are right within 1, 2, … MAX_TURNS greedy turns."""
    active: list[Context] = [(a, b, []) for a, b in sums]
    successes: list[int] = []
    while len(successes) < MAX_TURNS:
        wrong: list[Context] = []
        by_length = sorted(active, key=lambda c: len(encode_context(tokenizer, c)))
        for _, same in groupby(by_length, key=lambda c: len(encode_context(tokenizer, c))):
            batch = list(same)
            token_ids = torch.tensor([encode_context(tokenizer, c) for c in batch])
            output = model.generate(
                inputs=token_ids,
                attention_mask=torch.ones_like(token_ids),
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
            )
            texts = tokenizer.batch_decode(
                output[:, token_ids.shape[1] :], skip_special_tokens=True
            )
            for (a, b, replies), text in zip(batch, texts, strict=True):
                reply = read_reply(text)
                if not (reply.closed and reply.answer == str(a + b)):
                    wrong.append((a, b, [*replies, reply]))
        active = wrong
        successes.append(len(sums) - len(wrong))
    return successes


def read_reply(text: str) -> Reply:
    """Read an assistant message back; what the tags do not enclose is not an answer."""
    answer, closing, _ = text.removeprefix("<answer>").partition("</answer>")
    return Reply(answer=answer.strip(), closed=bool(closing))
