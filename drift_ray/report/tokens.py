"""Which characters of a message each sampled token stands for.

Texts are what they are; tokens are laid over them, and only where they fit exactly.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drift_ray.errors import ModelError
from drift_ray.models import resolve_model
from drift_ray.store import MODEL, RunStore

logger = logging.getLogger(__name__)

Ids = npt.NDArray[np.int32]
_FILE = "tokenizer.json"
_REPLACEMENT = "\ufffd"
_MAX_LENGTH = 255


def load_tokenizer(store: RunStore, model_path: str) -> Any | None:
    """The run's tokenizer, from its trained model or from the reference policy's folder.

    Returns:
        A ``tokenizers.Tokenizer``; None if that library or the file is not at hand.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    text = _tokenizer_text(store, model_path)
    try:
        return None if text is None else Tokenizer.from_str(text)
    except Exception:  # it has no narrower one for a file that it does not understand
        logger.warning("The tokenizer cannot be read: the report colours no tokens.")
        return None


def _tokenizer_text(store: RunStore, model_path: str) -> str | None:
    name = f"{MODEL}/{_FILE}"
    if store.exists(name):
        return str(store.fs.cat_file(store.path(name)).decode())
    # A hub id is not looked up: a report must not go to the network.
    if not model_path.startswith("builtin:") and not Path(model_path).expanduser().is_dir():
        return None
    try:
        file = resolve_model(model_path) / _FILE
    except ModelError:  # the run may have been moved away from its reference policy
        return None
    return file.read_text(encoding="utf-8") if file.exists() else None


class TokenSpans:
    """Lengths of tokens within texts.

    Args:
        tokenizer: A ``tokenizers.Tokenizer``.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._length: dict[int, int] = {}

    def lengths(self, texts: Sequence[str], sampled: Sequence[Ids]) -> list[list[int] | None]:
        """How many UTF-16 units of its text each sampled token stands for.

        A text may begin with a prefill, which no token stands for: the tokens cover its end.

        Args:
            texts: Messages, prefill included.
            sampled: Token ids of each.

        Returns:
            One list a text, or None where the tokens do not spell the end of the text.
        """
        decoded = self._tokenizer.decode_batch([ids.tolist() for ids in sampled])
        self._learn(np.unique(np.concatenate([np.empty(0, np.int32), *sampled])))
        return [
            self._fit(ids.tolist(), end) if text.endswith(end) else None
            for text, end, ids in zip(texts, decoded, sampled, strict=True)
        ]

    def _learn(self, ids: Ids) -> None:
        new = [each for each in ids.tolist() if each not in self._length]
        for each, piece in zip(new, self._tokenizer.decode_batch([[i] for i in new]), strict=True):
            # Part of a character: no length of its own.
            self._length[each] = -1 if _REPLACEMENT in piece else utf16_length(piece)

    def _fit(self, ids: list[int], text: str) -> list[int] | None:
        lengths = [self._length[each] for each in ids]
        if -1 in lengths or sum(lengths) != utf16_length(text):
            lengths = self._stepwise(ids)
        fits = sum(lengths) == utf16_length(text) and max(lengths, default=0) <= _MAX_LENGTH
        return lengths if fits else None

    def _stepwise(self, ids: list[int]) -> list[int]:
        """A character made of several tokens belongs to its last one; slow, but always right."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        pieces = (stream.step(self._tokenizer, each) for each in ids)
        return [0 if piece is None else utf16_length(piece) for piece in pieces]


def utf16_length(text: str) -> int:
    """Length of a text as a browser counts it."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2
