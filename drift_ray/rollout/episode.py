"""One trajectory in the making: an environment, a growing list of tokens, and the seed rule.

Pure: knows neither the engine nor Ray. The player asks for the next request and hands back the
completion until the episode is done.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drift_ray.config import SamplingConfig
from drift_ray.rollout.chat import ChatFormat
from drift_ray.tasks.environment import Environment
from drift_ray.types import EndReason, Message, Prompt, StopReason, Trajectory, Turn


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What one turn asks of the engine."""

    request_id: str
    token_ids: list[int]
    sampling: SamplingConfig
    max_tokens: int
    """``sampling.max_tokens``, cut to what the context window leaves."""
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Completion:
    """What the engine sampled for one request."""

    request_id: str
    token_ids: npt.NDArray[np.int32]
    """Shape ``[num_sampled]``, including the end-of-turn token if there was one."""
    logprobs: npt.NDArray[np.float32]
    """Shape ``[num_sampled]``: log-probability of each sampled token under the policy."""
    stop_reason: StopReason


def turn_seed(run_seed: int, prompt_id: str, trajectory_index: int, turn_index: int) -> int:
    """Seed of one turn: depends on what is sampled, not on where, when or in which attempt."""
    key = f"{run_seed}\0{prompt_id}\0{trajectory_index}\0{turn_index}".encode()
    # 63 bits: the engine's generators take signed 64-bit seeds.
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


class Episode:
    """Plays one trajectory turn by turn.

    Args:
        prompt: The problem.
        trajectory_index: 0-based within the group.
        environment: A fresh environment for this prompt.
        chat: Renders messages as tokens.
        sampling: How a turn is sampled.
        max_model_len: Context window of the engine, in tokens.
        seed: The run's seed.
    """

    def __init__(
        self,
        prompt: Prompt,
        *,
        trajectory_index: int,
        environment: Environment,
        chat: ChatFormat,
        sampling: SamplingConfig,
        max_model_len: int,
        seed: int,
    ) -> None:
        self._prompt = prompt
        self._trajectory_index = trajectory_index
        self._environment = environment
        self._chat = chat
        self._sampling = sampling
        self._max_model_len = max_model_len
        self._seed = seed
        self._messages: list[Message] = list(environment.reset())
        self._turns: list[Turn] = []
        self._token_ids: list[int] = chat.opening(self._messages)
        self._logprobs: list[npt.NDArray[np.float32]] = [_not_sampled(len(self._token_ids))]
        self._format_penalty = 0.0
        self._end_reason: EndReason | None = None
        self._check_room()

    @property
    def done(self) -> bool:
        """Whether the trajectory is complete."""
        return self._end_reason is not None

    def request(self) -> Request:
        """The next turn's request."""
        room = self._max_model_len - len(self._token_ids)
        turn = len(self._turns)
        return Request(
            request_id=f"{self._prompt.prompt_id}/{self._trajectory_index}/{turn}",
            token_ids=list(self._token_ids),
            sampling=self._sampling,
            max_tokens=min(self._sampling.max_tokens, room),
            seed=turn_seed(self._seed, self._prompt.prompt_id, self._trajectory_index, turn),
        )

    def accept(self, completion: Completion) -> None:
        """Take a turn's completion, let the environment react, and prepare the next turn."""
        text = self._chat.prefill + self._chat.decode(completion.token_ids)
        result = self._environment.step(text)
        start = len(self._token_ids)
        self._token_ids.extend(completion.token_ids.tolist())
        self._logprobs.append(completion.logprobs)
        self._turns.append(
            Turn(
                turn_index=len(self._turns),
                text=text,
                canonical_text=result.canonical_text,
                answers=result.answers,
                answer_norms=result.answer_norms,
                reward=result.reward,
                format_ok=result.format_ok,
                stop_reason=completion.stop_reason,
                token_start=start,
                token_end=len(self._token_ids),
            )
        )
        self._messages.append(Message(role="assistant", content=result.canonical_text))
        self._format_penalty += result.format_penalty
        self._end_reason = result.end_reason
        if result.feedback is not None:
            self._messages.append(result.feedback)
            context = self._chat.continuation(completion.token_ids, result.feedback)
            self._token_ids.extend(context)
            self._logprobs.append(_not_sampled(len(context)))
            self._check_room()

    def trajectory(self) -> Trajectory:
        """The finished record."""
        if self._end_reason is None:
            raise RuntimeError("the episode is not over")
        rewarded = [turn.turn_index + 1 for turn in self._turns if turn.reward > 0]
        return Trajectory(
            prompt_id=self._prompt.prompt_id,
            trajectory_index=self._trajectory_index,
            task=self._prompt.task,
            question=self._prompt.question,
            gold=self._prompt.gold,
            messages=tuple(self._messages),
            turns=tuple(self._turns),
            token_ids=np.asarray(self._token_ids, np.int32),
            logprobs=np.concatenate(self._logprobs),
            first_success_turn=rewarded[0] if rewarded else None,
            format_penalty=self._format_penalty,
            end_reason=self._end_reason,
            seed=self._seed,
        )

    def _check_room(self) -> None:
        if len(self._token_ids) >= self._max_model_len:
            self._end_reason = EndReason.CONTEXT_WINDOW


def _not_sampled(length: int) -> npt.NDArray[np.float32]:
    return np.full(length, np.nan, np.float32)
