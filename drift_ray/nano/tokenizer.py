"""The tokenizer of the nano model: byte-level, single digits, a few words, chat markers.

Every UTF-8 text encodes. The tags of the answer protocol are tokens of their own, so text on
either side of a tag tokenises the same whether encoded at once or piece by piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from drift_ray.nano.dialogues import CLOSE, END, FEEDBACK, OPEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD = "<|pad|>"
ROLES = ("system", "user", "assistant")
TAGS = ("<think>", "</think>", OPEN, CLOSE)
MAX_LENGTH = 512

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('unknown role: ' ~ message.role) -}}
{%- endif -%}
{{- '<|' ~ message.role ~ '|>' ~ message.content ~ '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


WORDS = (FEEDBACK, "1+1=?")
"""What the environment of the sums says."""


def build_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """Build the tokenizer; a pure function of the words the environment uses."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=build_bpe(words),
        eos_token=END,
        pad_token=PAD,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_bpe(words: Sequence[str] = WORDS) -> Tokenizer:
    """Its tokens alone, without transformers."""
    bpe = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,  # more than the words below can fill
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(words, trainer)
    # Tags are content, not markup: they must survive decode(skip_special_tokens=True).
    markers = [PAD, END, *(f"<|{role}|>" for role in ROLES)]
    bpe.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in markers])
    bpe.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAGS])
    return bpe
