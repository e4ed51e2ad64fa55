"""An engine whose time is modelled and whose replies follow from the seed.

For drills that need many kills and for benchmarks of schedules: no claim about real engines rests
on it but what follows from a step time that grows with the batch.
"""

from __future__ import annotations

import heapq
import random
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from drift_ray.config import ModelConfig, ReplicaConfig
from drift_ray.nano.tokenizer import CHAT_TEMPLATE, build_bpe
from drift_ray.rollout.protocol import Completion, Request
from drift_ray.types import StopReason

Reply = Callable[[Request], list[int]]


class ModelledEngine:
    """Every step takes ``step_s + seq_s * batch`` and gives each running request one token.

    Args:
        reply: Sampled tokens of a request; what exceeds its ``max_tokens`` is cut off.
        tokenizer: Of the replies.
        step_s: Time of a step, in seconds, however small its batch.
        seq_s: What each running request adds.
        max_num_seqs: Requests that run at once.
    """

    max_model_len = 1 << 20

    def __init__(
        self,
        reply: Reply,
        tokenizer: Any,
        *,
        step_s: float = 0.0,
        seq_s: float = 0.0,
        max_num_seqs: int = 256,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_num_seqs = max_num_seqs
        self._reply = reply
        self._step_s = step_s
        self._seq_s = seq_s
        self._waiting: deque[Request] = deque()
        self._running: list[tuple[int, int, Completion]] = []
        """A heap by the step in which each ends."""
        self._num_steps = 0
        self._num_requests = 0

    def submit(self, request: Request) -> None:
        self._waiting.append(request)

    def step(self) -> list[Completion]:
        while self._waiting and len(self._running) < self.max_num_seqs:
            completion = complete(request := self._waiting.popleft(), self._reply(request))
            end = self._num_steps + max(1, len(completion.token_ids))
            self._num_requests += 1
            heapq.heappush(self._running, (end, self._num_requests, completion))
        if duration_s := self._step_s + self._seq_s * len(self._running):
            time.sleep(duration_s)
        self._num_steps += 1
        done = []
        while self._running and self._running[0][0] <= self._num_steps:
            done.append(heapq.heappop(self._running)[2])
        return done

    def load_weights(self, folder: Path) -> None:
        """Its replies do not depend on weights."""


def complete(request: Request, wanted: list[int]) -> Completion:
    sampled = np.asarray(wanted[: request.max_tokens], np.int32)
    return Completion(
        request_id=request.request_id,
        token_ids=sampled,
        logprobs=(-0.5 - sampled / 1024).astype(np.float32),
        stop_reason=StopReason.STOP if len(sampled) == len(wanted) else StopReason.LENGTH,
    )


def sums(tokenizer: Any) -> Reply:
    """Answers to sums of the addition task: right in four of ten cases, else a random number."""

    def reply(request: Request) -> list[int]:
        rng = random.Random(request.seed)
        a, b = re.findall(r"(\d+)\+(\d+)=", tokenizer.decode(request.token_ids))[0]
        answer = int(a) + int(b) if rng.random() < 0.4 else rng.randrange(200)
        text = f"{answer}</answer><|end|>"
        return list(tokenizer.encode(text, add_special_tokens=False))

    return reply


class LightTokenizer:
    """The nano model's, without transformers: its import would be half of a replica's start."""

    chat_template = CHAT_TEMPLATE

    def __init__(self) -> None:
        self._bpe = build_bpe()
        self._template = jinja2.Template(CHAT_TEMPLATE)

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        assert not tokenize
        return self._template.render(
            messages=conversation, add_generation_prompt=add_generation_prompt
        )

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(self._bpe.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return str(self._bpe.decode(list(ids), skip_special_tokens=skip_special_tokens))


def make_modelled_engine(
    folder: Path, model: ModelConfig, replica: ReplicaConfig, *, step_s: float = 0.0
) -> ModelledEngine:
    """For a replica pool: pass ``partial(make_modelled_engine, step_s=...)``."""
    tokenizer = LightTokenizer()
    return ModelledEngine(sums(tokenizer), tokenizer, step_s=step_s, max_num_seqs=32)


def modelled(step_s: float) -> partial[ModelledEngine]:
    return partial(make_modelled_engine, step_s=step_s)
