"""A fleet of OpenAI-compatible servers behind the engine protocol.

Requests run on an event loop of the engine's own thread; all else happens in the caller's.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from drift_ray.config import OpenAIConfig
from drift_ray.errors import EngineRequestError, ModelError
from drift_ray.rollout.openai_client import ServerSample
from drift_ray.rollout.openai_servers import OpenAIServers
from drift_ray.rollout.protocol import Completion, Refusal, Request
from drift_ray.types import StopReason

logger = logging.getLogger(__name__)

T = TypeVar("T")

_STEP_S = 0.05
"""How long a step waits for the first completion."""

_IDS_LOST = (
    "The servers return text without token ids. Ids are made anew from the text, which need not "
    "be the tokens that were sampled: trajectories are not exact, and the policy is trained on "
    "this other spelling. Such servers may also apply sampling defaults of their own, as top_k. "
    "vLLM servers return the ids and sample as they are told."
)
_LOGPROBS_LOST = (
    "The servers return no log-probability, or not one a token. They are stored as missing for "
    "those completions, so nothing that compares policies by likelihood can use them; rewards, "
    "importance weights and training do not need them."
)


class OpenAIEngine:
    """A client of servers that host the policy.

    vLLM servers return exactly what an engine in this process would sample. Where a server returns
    text only, ids are made anew from it; their number may then exceed ``max_tokens`` by a few.

    Args:
        config: The servers.
        tokenizer: Hugging Face tokenizer of the model that they serve.

    Raises:
        StageError: The ``openai`` package is missing, no server can be reached, or one refuses the
            key.
        ModelError: A server does not serve the model, or not with as long a context window.
    """

    def __init__(self, config: OpenAIConfig, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.max_model_len = config.max_model_len
        self.max_num_seqs = config.max_in_flight
        self._lost: set[str] = set()
        self._num_completions = 0
        self._num_pending = 0
        self._ended: SimpleQueue[Future[tuple[Request, ServerSample] | Refusal]] = SimpleQueue()
        self._slots = asyncio.Semaphore(config.max_in_flight)
        self._servers = OpenAIServers(config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="openai")
        self._thread.start()
        try:
            self._begin(self._servers.check()).result()
        except BaseException:
            self.close()
            raise

    @property
    def exact(self) -> bool | None:
        """Whether all ids and log-probabilities were the sampled ones; None before the first."""
        return not self._lost if self._num_completions else None

    def submit(self, request: Request) -> None:
        """Queue one turn. Refusals come out of :meth:`step`."""
        self._num_pending += 1
        self._begin(self._sample(request)).add_done_callback(self._ended.put)

    def step(self) -> list[Completion | Refusal]:
        """Wait a moment for the first turn to end; return all that have.

        Raises:
            StageError: A server refuses the key: the engine is lost.
            ModelError: A server does not have the model any more: the engine is lost.
        """
        if not self._num_pending:
            return []
        try:
            ended = [self._ended.get(timeout=_STEP_S)]
        except Empty:
            return []
        while not self._ended.empty():
            ended.append(self._ended.get())
        self._num_pending -= len(ended)
        outcomes = [future.result() for future in ended]
        return [
            outcome if isinstance(outcome, Refusal) else self._completion(*outcome)
            for outcome in outcomes
        ]

    def load_weights(self, folder: Path) -> None:
        """Not possible: servers host weights of their own.

        Raises:
            ModelError: Always.
        """
        raise ModelError(
            f"OpenAI-compatible servers host their own weights and cannot take those of {folder}.",
            "Serve that folder (vllm serve FOLDER) and point replicas.engine at it, or use "
            "replicas.engine.kind vllm.",
        )

    def close(self) -> None:
        """Give up what is under way and end the thread. May be called again."""
        if self._loop.is_closed():
            return
        self._begin(self._shut_down()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _sample(self, request: Request) -> tuple[Request, ServerSample] | Refusal:
        async with self._slots:
            try:
                return request, await self._servers.complete(_parameters(request))
            except EngineRequestError as error:
                return Refusal(request_id=request.request_id, error=error)

    async def _shut_down(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._servers.close()

    def _completion(self, request: Request, sample: ServerSample) -> Completion:
        self._num_completions += 1
        ids, told = sample.token_ids, sample.token_logprobs
        if ids is None:
            self._tell_once(_IDS_LOST)
            ids = self.tokenizer.encode(sample.text, add_special_tokens=False)
            if sample.stop_reason is StopReason.STOP:
                ids = [*ids, self.tokenizer.eos_token_id]
        logprobs = _logprobs(told, len(ids))
        if np.isnan(logprobs).any():
            self._tell_once(_LOGPROBS_LOST)
        return Completion(
            request_id=request.request_id,
            token_ids=np.asarray(ids, np.int32),
            logprobs=logprobs,
            stop_reason=sample.stop_reason,
        )

    def _tell_once(self, what: str) -> None:
        if what not in self._lost:
            self._lost.add(what)
            logger.warning(what)


def _parameters(request: Request) -> dict[str, Any]:
    """A request in the words of ``/completions``."""
    sampling = request.sampling
    parameters: dict[str, Any] = {
        "prompt": request.token_ids,
        "max_tokens": request.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        # 0 would do by the API's letter, but some servers take it for "none".
        "logprobs": 1,
    }
    return parameters if sampling.temperature == 0 else parameters | {"seed": request.seed}


def _logprobs(told: list[float | None], num_tokens: int) -> npt.NDArray[np.float32]:
    """All of them or none: NaN says that the server does not tell."""
    if len(told) != num_tokens or None in told:
        return np.full(num_tokens, np.nan, np.float32)
    return np.asarray(told, np.float32)
