"""The vocabulary of the package: small immutable records and why things ended.

Nothing here imports Ray, torch, vLLM or Arrow, so every room can speak these words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # grading processes need the words, not the arrays
    import numpy as np
    import numpy.typing as npt


class StopReason(StrEnum):
    """Why the engine stopped generating one turn."""

    STOP = "stop"
    """The policy ended its turn (end-of-turn token or a stop string)."""
    LENGTH = "length"
    """The turn's token limit was reached."""
    TRAJECTORY_LENGTH = "trajectory_length"
    """The token limit of the whole trajectory was reached."""
    CONTEXT_WINDOW = "context_window"
    """The context window was full."""


class EndReason(StrEnum):
    """Why a trajectory ended."""

    SUCCESS = "success"
    MAX_TURNS = "max_turns"
    MAX_ACTIONS = "max_actions"
    MAX_TOKENS = "max_tokens"
    """The trajectory's token limit leaves nothing for another turn."""
    CONTEXT_WINDOW = "context_window"
    """The next prompt would leave the policy no room to answer."""


class FailureCause(StrEnum):
    """Why a trajectory could not be completed. Failures are never scored."""

    ENGINE = "engine"
    """The engine refused or lost the request."""
    ENVIRONMENT = "environment"
    """The environment raised an exception."""
    GRADER = "grader"
    """The grader raised an exception, or its process died."""
    DEADLINE = "deadline"
    """The environment or its grader did not answer in time."""
    CONTEXT_WINDOW = "context_window"
    """The first prompt is too long for the engine."""
    REPLICA = "replica"
    """Replicas died again and again while they played its group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One problem: what is asked and what counts as correct."""

    prompt_id: str
    """Unique within a prompt set; names the group of all its trajectories."""
    task: str
    question: str
    gold: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One chat message."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A grader's word on one answer."""

    correct: bool
    valid: bool
    """Whether the answer had anything to grade (not empty after normalisation)."""
    normalized: str
    """The form in which two answers count as the same (see the repetition penalty)."""


Grader = Callable[[str, str], Verdict]
"""``grade(answer, gold)``: pure, and safe to call from any thread or process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One assistant message and the environment's reaction to it."""

    turn_index: int
    """0-based."""
    text: str
    """Prefill plus generated text, as decoded."""
    canonical_text: str
    """Tags around stripped parts if the message parsed, else ``text``."""
    answers: tuple[str, ...]
    """The answers that were executed, in order."""
    answer_norms: tuple[str, ...]
    """The same answers, normalised by the grader."""
    reward: float
    """1.0 if one of the answers was correct, else 0.0."""
    format_ok: bool
    """Whether the message held a parseable answer."""
    stop_reason: StopReason
    prompt_start: int
    token_start: int
    token_end: int
    """The engine was given ``trajectory.token_ids[prompt_start:token_start]`` and sampled
    ``trajectory.token_ids[token_start:token_end]``."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trajectory:
    """The complete record of one episode, exactly as it was sampled."""

    prompt_id: str
    trajectory_index: int
    """0-based within the group."""
    task: str
    question: str
    gold: str
    messages: tuple[Message, ...]
    turns: tuple[Turn, ...]
    token_ids: npt.NDArray[np.int32]
    """Shape ``[num_tokens]``: context and sampled tokens in order, as the engine saw them. One
    growing sequence, unless a rendered history departs from it: then another begins behind it."""
    logprobs: npt.NDArray[np.float32]
    """Shape ``[num_tokens]``: log-probability under the sampling policy, NaN where the token
    was context and not sampled."""
    first_success_turn: int | None
    """1-based turn of the first correct answer; None if there was none."""
    format_penalty: float
    """Sum over turns, <= 0."""
    end_reason: EndReason
    seed: int
    """The run seed; with prompt, index and turn it determines every sampled token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A trajectory that could not be completed: kept beside the data, never within it."""

    prompt_id: str
    trajectory_index: int
    turn_index: int
    """0-based turn in which it failed."""
    cause: FailureCause
    message: str
    trace: str
    """Python traceback; empty if there was no exception."""
