"""Many OpenAI-compatible servers as one: whose turn it is, and when to ask again."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drift_ray.config import OpenAIConfig
from drift_ray.errors import EngineRequestError, StageError
from drift_ray.rollout.openai_client import OpenAIClient, ServerSample, TryAgainError

logger = logging.getLogger(__name__)

FIRST_WAIT_S = 2.0
"""Wait after a first failed attempt; doubles with every further one."""
LONGEST_WAIT_S = 60.0
REST_S = 30.0
"""How long others are preferred to a server that failed."""
CHECK_ATTEMPTS = 3


@dataclass(slots=True, eq=False)
class _Server:
    client: OpenAIClient
    rests_until: float = 0.0
    """On the monotonic clock; until then others are preferred."""
    failing: bool = False
    """Its last answer was a failure, and not a request to wait."""


class OpenAIServers:
    """The servers of one engine. One event loop owns them.

    Args:
        config: Where they are and how patient to be.

    Raises:
        StageError: The ``openai`` package is not installed.
    """

    def __init__(self, config: OpenAIConfig) -> None:
        self._max_attempts = config.max_attempts
        self._servers = [_Server(OpenAIClient(url, config)) for url in config.urls]
        self._turn = 0

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(server.client.close() for server in self._servers))

    async def check(self) -> None:
        """Check every server. Those that cannot be reached are left to rest if others can.

        Raises:
            StageError: No server can be reached, one refuses the key, or one is no such API.
            ModelError: One does not serve the model, or not with as long a context window.
        """
        problems = [p for p in await asyncio.gather(*map(self._check, self._servers)) if p]
        if len(problems) == len(self._servers):
            raise StageError(
                "No server of replicas.engine.urls can be reached: " + "; ".join(problems),
                "Start the servers and wait until they are ready, or mend the URLs.",
            )
        for problem in problems:
            logger.warning("Going on without a server until it answers: %s", problem)

    async def complete(self, parameters: Mapping[str, Any]) -> ServerSample:
        """Send one request until a server completes it.

        Args:
            parameters: Of ``/completions``, all but the model.

        Raises:
            EngineRequestError: A server refuses the request, or all attempts failed.
            StageError: A server refuses the key.
            ModelError: A server does not have the model.
        """
        problem = ""
        for attempt in range(1, self._max_attempts + 1):
            server = self._next()
            wait_s = server.rests_until - time.monotonic()
            if wait_s > 0 and not server.failing:
                # It asked for this time of all requests; they shall not come back all at once.
                await asyncio.sleep(wait_s * random.uniform(1.0, 1.2))
            try:
                sample = await server.client.complete(parameters)
            except TryAgainError as error:
                problem = f"{server.client.url}: {error}"
                self._let_rest(server, error.after_s)
                if attempt < self._max_attempts and not self._may_go_on(error):
                    await asyncio.sleep(_wait_s(attempt))
            else:
                if server.failing:
                    server.failing, server.rests_until = False, 0.0
                return sample
        raise EngineRequestError(
            f"All {self._max_attempts} attempts at a request failed, the last one at {problem}",
            "See the servers' logs; replicas.engine.max_attempts and timeout_s set the patience.",
        )

    def _next(self) -> _Server:
        """In turn, passing over those that rest while others do not."""
        now = time.monotonic()
        self._turn = (self._turn + 1) % len(self._servers)
        in_turn = self._servers[self._turn :] + self._servers[: self._turn]
        server = min(in_turn, key=lambda server: max(server.rests_until, now))
        if server.failing:
            # One request finds out; the next ones pass over it until there is an answer.
            server.rests_until = now + REST_S
        return server

    def _let_rest(self, server: _Server, after_s: float | None) -> None:
        server.failing = after_s is None
        server.rests_until = time.monotonic() + (REST_S if after_s is None else after_s)

    def _may_go_on(self, error: TryAgainError) -> bool:
        """Without a pause of its own: elsewhere, or after the time that the server asked for."""
        now = time.monotonic()
        return error.after_s is not None or any(s.rests_until <= now for s in self._servers)

    async def _check(self, server: _Server) -> str | None:
        """Why it cannot be reached, if so."""
        for attempt in range(1, CHECK_ATTEMPTS + 1):
            try:
                await server.client.check()
            except TryAgainError as error:
                problem = f"{server.client.url}: {error}"
                if attempt < CHECK_ATTEMPTS:
                    await asyncio.sleep(_wait_s(attempt))
            else:
                return None
        self._let_rest(server, None)
        return problem


def _wait_s(attempt: int) -> float:
    """Exponential, with jitter: requests that failed together do not come back together."""
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
