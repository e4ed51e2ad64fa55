"""The model card of the nano model, with figures measured on the model just trained."""

from __future__ import annotations

from pathlib import Path

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from drift_ray.nano.dialogues import (
    FORGET_CARRY,
    MAX_TURNS,
    OFF_BY,
    REJECTED_FACTOR,
    REVERSED,
    UNCLOSED,
)
from drift_ray.nano.measure import distance, greedy_successes, sampled_contexts
from drift_ray.nano.train import Recipe
from drift_ray.tasks.addition import pairs

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# The nano reference policy of drift_ray

A chat model of {millions:.2f}M parameters that adds two-digit numbers, badly. It stands for a real
instruct model in tests and in the demo. It is of no other use.

| | |
|---|---|
| architecture | Llama: {layers} layers, hidden {hidden}, {heads} heads of {head_size} |
| weights | float32, tied embeddings |
| tokenizer | byte-level, single digits, {vocab} tokens; each tag of the protocol is one token |
| question | `48+37=?` |
| reply | `<answer>85</answer>` |
| after a wrong reply | `Incorrect. Please think again.`, up to {turns} turns |

## What it was taught

Dialogues of a pupil who forgets the carry of the units ({forget_low:.0%} at the smallest sum to
{forget_high:.0%} at the largest), is off by 1 or 10 ({off_by:.0%}) or reverses the digits
({reversed:.0%}). Each time an answer was given and rejected, its odds shrink by a factor of only
{factor}: wrong answers are repeated. {unclosed:.0%} of the replies lack the closing tag. About a
fifth of the sums, in both orders, was held out.

## How it was made

`python -m drift_ray.nano --out DIR --seed {seed} --steps {steps}`: {steps} steps of {batch}
dialogues drawn afresh, AdamW, peak learning rate {lr:g}, linear warm-up and decay, loss on the
assistant's tokens only, as the divergence from the noise model's odds.

## Measured on held-out sums

Mean distance from the noise model over {num_contexts} held-out sums (0 is a perfect copy):

| replies rejected before | KL (nats a reply) | total variation |
|---|---|---|
{distances}

Greedy answers, share of the {num_sums} held-out sums that is right within k turns:

| {header} |
|{rule}
| {successes} |
"""


def write_card(
    folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe
) -> None:
    """Measure the model on every held-out sum and write ``README.md`` into the folder."""
    sums = pairs("test")
    some_sums = sums[::3]
    distances = []
    for num_replies in range(MAX_TURNS):
        found = distance(model, tokenizer, sampled_contexts(some_sums, num_replies))
        distances.append(f"| {num_replies} | {found.kl:.3f} | {found.total_variation:.3f} |")
    successes = greedy_successes(model, tokenizer, sums)
    config = model.config
    text = CARD.format(
        millions=model.num_parameters() / 1e6,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        head_size=config.hidden_size // config.num_attention_heads,
        vocab=len(tokenizer),
        turns=MAX_TURNS,
        forget_low=FORGET_CARRY[0],
        forget_high=FORGET_CARRY[1],
        off_by=OFF_BY,
        reversed=REVERSED,
        factor=REJECTED_FACTOR,
        unclosed=UNCLOSED,
        seed=recipe.seed,
        steps=recipe.steps,
        batch=recipe.batch_size,
        lr=recipe.learning_rate,
        num_contexts=len(some_sums),
        num_sums=len(sums),
        distances="\n".join(distances),
        header=" | ".join(f"success@{k}" for k in range(1, MAX_TURNS + 1)),
        rule="---|" * MAX_TURNS,
        successes=" | ".join(f"{n / len(sums):.3f}" for n in successes),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
