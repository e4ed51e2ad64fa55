"""Environments: what a policy hears after each of its messages.

An environment knows text only. Tokens, engines and schedules are the episode's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from drift_ray.tasks.parsing import parse_response
from drift_ray.types import EndReason, Message, Prompt, Verdict

if TYPE_CHECKING:
    from drift_ray.config import EnvironmentConfig
    from drift_ray.tasks.graders import Grader


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """The environment's reaction to one assistant message."""

    canonical_text: str
    """The message as the history should hold it (see ``parsing``)."""
    answers: tuple[str, ...]
    """The answers that were executed: up to the first correct one, within the action budget."""
    answer_norms: tuple[str, ...]
    """The same answers, normalised by the grader."""
    reward: float
    """1.0 if one of the answers was correct, else 0.0."""
    format_ok: bool
    """Whether the message held a parseable answer."""
    format_penalty: float
    """What this message adds to the trajectory's format penalty, <= 0."""
    end_reason: EndReason | None
    """Why the episode is over; None while it goes on."""
    feedback: Message | None
    """What the policy hears next; None once the episode is over."""

    @property
    def done(self) -> bool:
        """Whether the episode is over."""
        return self.end_reason is not None


class Environment(Protocol):
    """One live problem. Reset it once, then give it message after message until it is done."""

    def reset(self) -> tuple[Message, ...]:
        """Start from the beginning and return the opening messages."""
        ...

    def step(self, text: str) -> StepResult:
        """React to an assistant message (prefill included)."""
        ...


class UnaryFeedbackEnvironment:
    """Says whether an answer was right, and nothing more, until it is or the budget is gone.

    Semantics of DRIFT (arXiv 2605.31455): a message without an answer costs the format penalty and
    its turn, but no action; the answers of a message are executed in order until one is correct.

    Args:
        prompt: The problem.
        config: Budgets, penalty and wording.
        grade: Decides what is correct.
    """

    def __init__(self, prompt: Prompt, *, config: EnvironmentConfig, grade: Grader) -> None:
        self._prompt = prompt
        self._config = config
        self._grade = grade
        self._turns_used = 0
        self._actions_used = 0
        self._done = False

    def reset(self) -> tuple[Message, ...]:
        """Start from the beginning and return the opening messages."""
        self._turns_used = self._actions_used = 0
        self._done = False
        # One literal replacement: braces in a question must neither fail nor be filled in.
        question = self._config.user_template.replace("{question}", self._prompt.question)
        user = Message(role="user", content=question)
        if self._config.system_prompt is None:
            return (user,)
        return (Message(role="system", content=self._config.system_prompt), user)

    def step(self, text: str) -> StepResult:
        """React to an assistant message (prefill included).

        Raises:
            RuntimeError: The episode is already over.
        """
        if self._done:
            raise RuntimeError("the episode is over: call reset() before another step()")
        config = self._config
        parsed = parse_response(
            text, think=config.think, max_actions_per_turn=config.max_actions_per_turn
        )
        verdicts = self._execute(parsed.answers)
        self._turns_used += 1
        self._actions_used += len(verdicts)
        solved = bool(verdicts) and verdicts[-1].correct
        end_reason = self._end_reason(solved)
        self._done = end_reason is not None
        return StepResult(
            canonical_text=parsed.canonical_text,
            answers=parsed.answers[: len(verdicts)],
            answer_norms=tuple(v.normalized for v in verdicts),
            reward=float(solved),
            format_ok=parsed.format_ok,
            format_penalty=0.0 if parsed.format_ok else config.format_penalty,
            end_reason=end_reason,
            feedback=None if self._done else Message(role="user", content=config.feedback),
        )

    def _execute(self, answers: tuple[str, ...]) -> list[Verdict]:
        """Grade answers in order, up to the first correct one or the last action left."""
        verdicts: list[Verdict] = []
        for answer in answers[: self._config.max_actions_per_traj - self._actions_used]:
            verdicts.append(self._grade(answer, self._prompt.gold))
            if verdicts[-1].correct:
                break
        return verdicts

    def _end_reason(self, solved: bool) -> EndReason | None:
        if solved:
            return EndReason.SUCCESS
        if self._turns_used >= self._config.max_turns:
            return EndReason.MAX_TURNS
        if self._actions_used >= self._config.max_actions_per_traj:
            return EndReason.MAX_ACTIONS
        return None
