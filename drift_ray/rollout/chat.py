"""From messages to tokens, with continuity: what was sampled is never decoded and re-encoded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError

from drift_ray.errors import ModelError
from drift_ray.types import Message

_SENTINEL = "\u2063assistant\u2063"  # invisible separators: no template or text contains them


class ChatFormat:
    """Renders a conversation with the tokenizer's own chat template.

    Args:
        tokenizer: A Hugging Face tokenizer that has a chat template.
        prefill: Text every assistant message starts with; part of the prompt, not sampled.
        history: Whether later prompts append to the tokens so far, or render all messages anew.

    Raises:
        ModelError: The tokenizer has no chat template.
    """

    def __init__(
        self, tokenizer: Any, prefill: str, history: Literal["append", "template"] = "append"
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                f"The tokenizer of {tokenizer.name_or_path} has no chat template.",
                "Use an instruct model, or add chat_template.jinja to the model folder.",
            )
        self._tokenizer = tokenizer
        self.prefill = prefill
        self.history = history
        # One wording, or a few: environments may also make up a new one each time.
        self._tail = lru_cache(256)(self._render_tail)

    def opening(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a rendered prompt: messages, start of the assistant's turn, prefill."""
        return self._encode(self._render(messages) + self.prefill)

    def continuation(
        self, sampled: Sequence[int] | npt.NDArray[np.int32], feedback: Message
    ) -> list[int]:
        """Token ids between a turn's sampled tokens and the next turn's first one.

        They close the assistant's turn, carry the feedback and open the next turn. An end-of-turn
        token that was sampled is not written twice.
        """
        tail, closing = self._tail(feedback)
        if len(sampled) > 0 and sampled[-1] == tail[closing]:
            return tail[closing + 1 :]
        return tail[:]

    def decode(self, sampled: Sequence[int] | npt.NDArray[np.int32]) -> str:
        """Text of the sampled tokens, without special tokens."""
        return str(self._tokenizer.decode(sampled, skip_special_tokens=True))

    def _render_tail(self, feedback: Message) -> tuple[list[int], int]:
        """What follows an assistant's text, and where in it the end-of-turn token stands."""
        assistant = Message(role="assistant", content=_SENTINEL)
        text = self._render([Message(role="user", content="?"), assistant, feedback])
        before, sentinel, tail = text.partition(_SENTINEL)
        if not before or not sentinel:
            raise ModelError(
                f"The chat template of {self._tokenizer.name_or_path} changes assistant messages, "
                "so turns cannot be appended."
            )
        ids = self._encode(tail + self.prefill)
        # Some templates put a space before it.
        closing = next(i for i, token in enumerate(ids) if self._tokenizer.decode([token]).strip())
        return ids, closing

    def _render(self, messages: Sequence[Message]) -> str:
        conversation = [{"role": m.role, "content": m.content} for m in messages]
        try:
            text = self._tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise ModelError(
                f"The chat template of {self._tokenizer.name_or_path} refuses a message: {error}",
                "If it knows no system role, set task.environment.system_prompt=null.",
            ) from None
        return str(text)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))
