"""One trajectory in the making: an environment, a growing list of tokens, and the seed rule.

Pure: knows neither the engine nor Ray. The player asks for the next request and hands back the
completion until the episode is done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from drift_ray.config import SamplingConfig
from drift_ray.rollout.chat import ChatFormat
from drift_ray.rollout.protocol import Completion, Request
from drift_ray.tasks.environment import Environment, StepResult
from drift_ray.types import (
    EndReason,
    Failure,
    FailureCause,
    Message,
    Prompt,
    StopReason,
    Trajectory,
    Turn,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """The environment started."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stepped:
    """The environment reacted to a message."""

    text: str
    """Prefill plus generated text."""
    result: StepResult


Reaction = Opening | Stepped


def turn_seed(run_seed: int, prompt_id: str, trajectory_index: int, turn_index: int) -> int:
    """Seed of one turn: depends on what is sampled, not on where, when or in which attempt."""
    key = f"{run_seed}\0{prompt_id}\0{trajectory_index}\0{turn_index}".encode()
    # 63 bits: the engine's generators take signed 64-bit seeds.
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What all episodes of a stage have in common."""

    chat: ChatFormat
    sampling: SamplingConfig
    max_model_len: int
    """Context window of the engine, in tokens."""
    seed: int
    """The run's seed."""
    max_attempts: int = 1
    """How often a trajectory may be tried."""


class Episode:
    """Plays one trajectory turn by turn.

    The environment may be slow or hang, so this class never waits for it: whoever drives the
    episode takes :meth:`pending_call`, runs it wherever it likes and hands back the result.

    Args:
        prompt: The problem.
        trajectory_index: 0-based within the group.
        make_environment: Makes a fresh environment for this prompt.
        rules: How turns are rendered and sampled.
        attempt: 1-based; a later attempt samples the same tokens.
    """

    def __init__(
        self,
        prompt: Prompt,
        *,
        trajectory_index: int,
        make_environment: Callable[[], Environment],
        rules: Rules,
        attempt: int = 1,
    ) -> None:
        self.prompt = prompt
        self.trajectory_index = trajectory_index
        self._make_environment = make_environment
        self._rules = rules
        self._attempt = attempt
        self._environment: Environment | None = None
        self._messages: list[Message] = []
        self._turns: list[Turn] = []
        self._token_ids: list[int] = []
        self._prompt_start = 0
        self._num_sampled = 0
        self._logprobs: list[npt.NDArray[np.float32]] = []
        self._completion: Completion | None = None
        self._binding_limit = StopReason.LENGTH
        self._format_penalty = 0.0
        self._end_reason: EndReason | None = None

    @property
    def key(self) -> str:
        """Names the turn at hand, unique among the episodes of an engine."""
        return f"{self.prompt.prompt_id}/{self.trajectory_index}/{len(self._turns)}/{self._attempt}"

    @property
    def began(self) -> bool:
        """Whether a turn was sampled."""
        return self._completion is not None

    @property
    def num_sampled(self) -> int:
        """Tokens sampled so far."""
        return self._num_sampled

    @property
    def done(self) -> bool:
        """Whether the trajectory is complete."""
        return self._end_reason is not None

    @property
    def never_began(self) -> bool:
        """Whether it ended before its first turn: nothing was sampled, so there is no record."""
        return self.done and not self._turns

    def again(self) -> Episode | None:
        """A new attempt at the same trajectory, if one is left."""
        if self._attempt == self._rules.max_attempts:
            return None
        return Episode(
            self.prompt,
            trajectory_index=self.trajectory_index,
            make_environment=self._make_environment,
            rules=self._rules,
            attempt=self._attempt + 1,
        )

    def request(self) -> Request:
        """The next turn's request."""
        rules = self._rules
        limits = {StopReason.LENGTH: rules.sampling.max_tokens}
        if (tokens_left := self._tokens_left()) is not None:
            limits[StopReason.TRAJECTORY_LENGTH] = tokens_left
        limits[StopReason.CONTEXT_WINDOW] = self._room()
        self._binding_limit = min(limits, key=limits.__getitem__)
        turn = len(self._turns)
        return Request(
            request_id=self.key,
            token_ids=self._token_ids[self._prompt_start :],
            sampling=rules.sampling,
            max_tokens=limits[self._binding_limit],
            seed=turn_seed(rules.seed, self.prompt.prompt_id, self.trajectory_index, turn),
        )

    def complete(self, completion: Completion) -> None:
        """Take a turn's completion; the environment has to react to it."""
        self._completion = completion

    def pending_call(self) -> Callable[[], Reaction]:
        """What the environment has to do: start, or react to the last completion.

        May be called on any thread, once.
        """
        if self._completion is None:
            return self._start
        chat = self._rules.chat
        text = chat.prefill + chat.decode(self._completion.token_ids)
        return partial(self._step, text)

    def react(self, reaction: Reaction) -> None:
        """Take what the call returned and prepare the next turn."""
        if isinstance(reaction, Opening):
            self._messages.extend(reaction.messages)
            self._add_context(self._rules.chat.opening(reaction.messages))
        else:
            self._take_turn(reaction)

    def _start(self) -> Opening:
        self._environment = self._make_environment()
        return Opening(messages=self._environment.reset())

    def _step(self, text: str) -> Stepped:
        assert self._environment is not None  # _start ran before the first request
        return Stepped(text=text, result=self._environment.step(text))

    def _take_turn(self, reaction: Stepped) -> None:
        assert self._completion is not None
        completion, result = self._completion, reaction.result
        start = len(self._token_ids)
        cut_off = completion.stop_reason is not StopReason.STOP
        self._token_ids.extend(completion.token_ids.tolist())
        self._logprobs.append(completion.logprobs)
        self._num_sampled += len(completion.token_ids)
        self._turns.append(
            Turn(
                turn_index=len(self._turns),
                text=reaction.text,
                canonical_text=result.canonical_text,
                answers=result.answers,
                answer_norms=result.answer_norms,
                reward=result.reward,
                format_ok=result.format_ok,
                stop_reason=self._binding_limit if cut_off else StopReason.STOP,
                prompt_start=self._prompt_start,
                token_start=start,
                token_end=len(self._token_ids),
            )
        )
        self._messages.append(Message(role="assistant", content=result.canonical_text))
        self._format_penalty += result.format_penalty
        self._end_reason = result.end_reason
        if result.feedback is None:
            return
        if self._tokens_left() == 0:
            self._end_reason = EndReason.MAX_TOKENS
            return
        self._messages.append(result.feedback)
        if self._rules.chat.history == "append":
            self._add_context(self._rules.chat.continuation(completion.token_ids, result.feedback))
        else:
            self._render_anew()

    def _render_anew(self) -> None:
        """Make the whole history the next prompt; what it shares with the last one stands once."""
        prompt = self._rules.chat.opening(self._messages)
        so_far = self._token_ids[self._prompt_start :]
        if prompt[: len(so_far)] == so_far:
            self._add_context(prompt[len(so_far) :])
        else:
            self._prompt_start = len(self._token_ids)
            self._add_context(prompt)

    def _add_context(self, token_ids: list[int]) -> None:
        self._token_ids.extend(token_ids)
        self._logprobs.append(np.full(len(token_ids), np.nan, np.float32))
        if self._room() <= 0:
            self._end_reason = EndReason.CONTEXT_WINDOW

    def _room(self) -> int:
        return self._rules.max_model_len - (len(self._token_ids) - self._prompt_start)

    def _tokens_left(self) -> int | None:
        most = self._rules.sampling.max_tokens_per_traj
        return None if most is None else max(most - self._num_sampled, 0)

    def trajectory(self) -> Trajectory:
        """The finished record."""
        if self._end_reason is None:
            raise RuntimeError("the episode is not over")
        rewarded = [turn.turn_index + 1 for turn in self._turns if turn.reward > 0]
        return Trajectory(
            prompt_id=self.prompt.prompt_id,
            trajectory_index=self.trajectory_index,
            task=self.prompt.task,
            question=self.prompt.question,
            gold=self.prompt.gold,
            messages=tuple(self._messages),
            turns=tuple(self._turns),
            token_ids=np.asarray(self._token_ids, np.int32),
            logprobs=np.concatenate(self._logprobs),
            first_success_turn=rewarded[0] if rewarded else None,
            format_penalty=self._format_penalty,
            end_reason=self._end_reason,
            seed=self._rules.seed,
        )

    def failure(self, cause: FailureCause, message: str, trace: str) -> Failure:
        """The record of an episode that cannot go on."""
        return Failure(
            prompt_id=self.prompt.prompt_id,
            trajectory_index=self.trajectory_index,
            turn_index=len(self._turns),
            cause=cause,
            message=message,
            trace=trace,
        )
