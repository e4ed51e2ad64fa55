"""One OpenAI-compatible server: what it is sent, and what its answers and errors mean.

The ``openai`` package is imported when a client is made.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from drift_ray.config import OpenAIConfig
from drift_ray.errors import EngineRequestError, ModelError, StageError
from drift_ray.types import StopReason

_CONNECT_S = 10.0
_LIST_S = 30.0
_LONGEST_RETRY_AFTER_S = 120.0

# What vLLM understands beyond the API. Without the sampling fields a server applies those of the
# model's generation_config.json (Qwen's repetition penalty, for one) and so samples another policy.
_VLLM_FIELDS: dict[str, Any] = {
    "return_token_ids": True,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSample:
    """What a server tells of one sample."""

    text: str
    stop_reason: StopReason
    token_ids: list[int] | None
    """Sampled ids with the end-of-turn token; None from servers other than vLLM."""
    token_logprobs: list[float | None]
    """One a token, as the server counts them; may be empty."""


class TryAgainError(Exception):
    """This attempt failed; another one, here or elsewhere, may not.

    Args:
        message: What happened.
        after_s: How long the server asks to wait, if it does.
    """

    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


class _NotFoundError(Exception):
    """Status 404."""


class _Logprobs(BaseModel):
    token_logprobs: list[float | None] = []


class _Choice(BaseModel):
    text: str
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


class _Model(BaseModel):
    id: str
    max_model_len: int | None = None
    """Only vLLM and its kin tell."""


class _Models(BaseModel):
    data: list[_Model]


class OpenAIClient:
    """A client of one server. One event loop owns it.

    Args:
        url: Base URL of the API.
        config: The model, the key's variable and how long to wait.

    Raises:
        StageError: The ``openai`` package is not installed.
    """

    def __init__(self, url: str, config: OpenAIConfig) -> None:
        try:
            import openai
        except ImportError as error:
            raise StageError(
                f"The openai package is not installed here ({error}).",
                "Install the extra: pip install 'drift-ray[openai]'.",
            ) from None
        self.url = url.rstrip("/")
        self._config = config
        self._key = os.environ.get(config.api_key_env, "")
        self._takes_vllm_fields: bool | None = None
        self._client = openai.AsyncOpenAI(
            # Given none, the package would look for other credentials of the user's.
            api_key=self._key or "none",
            base_url=url,
            max_retries=0,
            # Whole calls are timed below: these limits are for the gaps between bytes.
            timeout=openai.Timeout(None, connect=_CONNECT_S),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def complete(self, parameters: Mapping[str, Any]) -> ServerSample:
        """Send one request, once.

        Args:
            parameters: Of ``/completions``, all but the model.

        Raises:
            TryAgainError: It failed in a way that may pass.
            EngineRequestError: The server refuses the request.
            StageError: The server refuses the key.
            ModelError: The server does not have the model.
        """
        if self._takes_vllm_fields is not False:
            try:
                sample = await self._complete(parameters, _VLLM_FIELDS)
            except EngineRequestError:
                if self._takes_vllm_fields:
                    raise
            else:
                self._takes_vllm_fields = True
                return sample
        # Strict servers refuse fields that they do not know.
        sample = await self._complete(parameters, {})
        if self._takes_vllm_fields is None:
            self._takes_vllm_fields = False
        return sample

    async def check(self) -> None:
        """See whether the server can be reached and serves the model as it is configured.

        Raises:
            TryAgainError: It cannot be reached now.
            StageError: It refuses the key, or there is no such API at the URL.
            ModelError: It does not serve the model, or not with as long a context window.
        """
        try:
            models = {model.id: model for model in await self._models()}
        except (_NotFoundError, EngineRequestError) as error:
            raise StageError(
                f"{self.url}/models does not list models: {error}",
                "Give the base URL of an OpenAI-compatible API; it usually ends in /v1.",
            ) from None
        if self._config.model not in models:
            raise self._not_served(list(models))
        served = models[self._config.model].max_model_len
        if served is not None and served < self._config.max_model_len:
            raise ModelError(
                f"{self.url} serves {self._config.model!r} with a context window of {served} "
                f"tokens, but replicas.engine.max_model_len is {self._config.max_model_len}.",
                f"Set it to at most {served}, or serve the model with a longer window.",
            )

    async def _complete(self, parameters: Mapping[str, Any], more: dict[str, Any]) -> ServerSample:
        # completions.create() looks at every id of the prompt, longer than all the rest takes.
        call = self._client.post(
            "/completions", body={"model": self._config.model, **parameters, **more}, cast_to=bytes
        )
        try:
            body = await self._body(call, self._config.timeout_s)
            choice = _Completion.model_validate_json(body).choices[0]
        except _NotFoundError as error:
            raise await self._model_is_missing(str(error)) from None
        except ValidationError as error:
            raise EngineRequestError(
                f"{self.url} does not answer with a completion: {_first_of(error)}",
                "replicas.engine.urls must speak the OpenAI completions API.",
            ) from None
        if choice.finish_reason == "abort":
            raise TryAgainError("the server gave up the request (finish_reason 'abort')")
        if choice.finish_reason not in (StopReason.STOP, StopReason.LENGTH):
            raise EngineRequestError(
                f"{self.url} ended a completion with finish_reason {choice.finish_reason!r}; "
                "only 'stop' and 'length' are samples of the policy."
            )
        return ServerSample(
            text=choice.text,
            stop_reason=StopReason(choice.finish_reason),
            token_ids=choice.token_ids,
            token_logprobs=choice.logprobs.token_logprobs if choice.logprobs else [],
        )

    async def _models(self) -> list[_Model]:
        call = self._client.get("/models", cast_to=bytes)
        body = await self._body(call, _LIST_S)
        try:
            return _Models.model_validate_json(body).data
        except ValidationError as error:
            raise EngineRequestError(_first_of(error)) from None

    async def _model_is_missing(self, said: str) -> ModelError:
        try:
            return self._not_served([model.id for model in await self._models()])
        except (TryAgainError, _NotFoundError, EngineRequestError):
            return ModelError(f"{self.url} does not find {self._config.model!r}: {said}")

    def _not_served(self, served: list[str]) -> ModelError:
        return ModelError(
            f"{self.url} does not serve the model {self._config.model!r}. "
            f"It lists: {', '.join(served) or 'none'}.",
            "Set replicas.engine.model to one of them, or serve the model.",
        )

    async def _body(self, call: Awaitable[bytes], timeout_s: float) -> bytes:
        """The body of an answer; failures in our words."""
        import openai

        try:
            async with asyncio.timeout(timeout_s):
                return await call
        except TimeoutError:
            raise TryAgainError(f"no answer within {timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise TryAgainError(f"no connection ({str(cause) or type(cause).__name__})") from None
        except openai.APIStatusError as error:
            raise self._meaning_of(error) from None

    def _meaning_of(self, error: Any) -> Exception:
        status, said = error.status_code, self._said(error)
        if status in (401, 403):
            name = self._config.api_key_env
            return StageError(
                # What a server says of a wrong key may quote a part of it.
                f"{self.url} refuses the key of the environment variable {name} (status {status}); "
                f"the variable is {'set' if self._key else 'not set'}.",
                f"Give the replicas a {name} that may use {self._config.model!r}.",
            )
        if status == 404:
            return _NotFoundError(said)
        if status in (408, 409, 429) or status >= 500:
            return TryAgainError(f"status {status}: {said}", _retry_after_s(error.response.headers))
        return EngineRequestError(f"{self.url} refuses a request with status {status}: {said}")

    def _said(self, error: Any) -> str:
        said = error.body.get("message") if isinstance(error.body, dict) else error.body
        text = str(said or error.response.text).strip()
        if self._key:
            text = text.replace(self._key, "…")
        return text if len(text) <= 500 else f"{text[:500]}…"


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: a number, or a date (RFC 9110, section 10.2.3)."""
    value = headers.get("retry-after", "")
    try:
        wait_s = float(value)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(wait_s, _LONGEST_RETRY_AFTER_S) if wait_s > 0 else None


def _first_of(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]
