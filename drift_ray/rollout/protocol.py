"""What an engine is: turns go in, completions come out, in whatever order they finish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from drift_ray.config import SamplingConfig
from drift_ray.types import StopReason


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What one turn asks of the engine."""

    request_id: str
    token_ids: list[int]
    sampling: SamplingConfig
    max_tokens: int
    """At least 1: what the limits of turn, trajectory and context window leave."""
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Completion:
    """What the engine sampled for one request."""

    request_id: str
    token_ids: npt.NDArray[np.int32]
    """Shape ``[num_sampled]``, including the end-of-turn token if there was one."""
    logprobs: npt.NDArray[np.float32]
    """Shape ``[num_sampled]``: log-probability of each sampled token under the policy; NaN where
    the engine does not tell."""
    stop_reason: StopReason
    """``STOP``, or ``LENGTH`` when ``max_tokens`` ended it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A request that the engine accepted and then could not complete; others go on."""

    request_id: str
    error: Exception


class Engine(Protocol):
    """Samples turns and batches continuously whatever was submitted. One thread owns it."""

    tokenizer: Any
    """Hugging Face tokenizer of the policy, with its chat template."""
    max_model_len: int
    """Context window in tokens."""
    max_num_seqs: int
    """Requests that it works on at once; further ones wait."""

    def submit(self, request: Request) -> None:
        """Queue one turn.

        Raises:
            EngineRequestError: The engine refuses this request; others are not affected.
        """
        ...

    def step(self) -> Sequence[Completion | Refusal]:
        """Advance all queued turns a little; return those that ended.

        Any other exception than a :class:`Refusal` means that the engine is lost.
        """
        ...

    def load_weights(self, folder: Path) -> None:
        """Replace the policy's weights by those of another folder of the same architecture.

        Called only while nothing is queued.

        Raises:
            ModelError: It cannot: the folder does not fit, or the engine has no such means.
        """
        ...
