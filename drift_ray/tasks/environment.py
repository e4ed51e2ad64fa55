"""Environments: what a policy hears after each of its messages.

An environment knows text only. Tokens, engines and schedules are the episode's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from drift_ray.errors import ConfigError
from drift_ray.tasks.import_path import import_callable
from drift_ray.tasks.parsing import parse_response
from drift_ray.types import EndReason, Message, Prompt, Verdict

if TYPE_CHECKING:
    from drift_ray.config import EnvironmentConfig
    from drift_ray.tasks.graders import Grader


_FIELD = re.compile(r"\{(answer|reward|turn|max_turns|turns_left|actions_left|hint)\}")


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

    Raises:
        ConfigError: The hint function cannot be imported.
    """

    def __init__(self, prompt: Prompt, *, config: EnvironmentConfig, grade: Grader) -> None:
        self._prompt = prompt
        self._config = config
        self._hint = None if config.hint is None else import_hint(config.hint)
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
            TypeError: The hint function returned no text.
            Exception: Whatever the grader or the hint function raises.
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
            feedback=None if self._done else self._feedback(parsed.answers[: len(verdicts)]),
        )

    def _feedback(self, answers: tuple[str, ...]) -> Message:
        config = self._config
        answer = answers[-1] if answers else ""
        values = {
            "answer": answer,
            "reward": "0.0",  # feedback follows wrong messages only
            "turn": str(self._turns_used),
            "max_turns": str(config.max_turns),
            "turns_left": str(config.max_turns - self._turns_used),
            "actions_left": str(config.max_actions_per_traj - self._actions_used),
            "hint": self._hint(answer, self._prompt.gold) if self._hint and answers else "",
        }
        if not isinstance(values["hint"], str):
            raise TypeError(f"hint {config.hint} returned {values['hint']!r}, which is no text")
        # All at once: braces in an answer or a hint are not filled in.
        content = _FIELD.sub(lambda found: values[found[1]], config.feedback)
        return Message(role="user", content=content)

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


def import_hint(path: str) -> Callable[[str, str], str]:
    """The hint function of an import path.

    Raises:
        ConfigError: It cannot be imported or called.
    """
    return import_callable(
        path, what="hint", hint="A hint is an importable function hint(answer, gold) -> str"
    )


def make_environment(prompt: Prompt, *, config: EnvironmentConfig, grade: Grader) -> Environment:
    """A fresh environment of the configured kind.

    Raises:
        ConfigError: It, or its hint function, cannot be imported, or it is no environment.
        Exception: Whatever an environment of one's own raises when it is made.
    """
    return environment_kind(config)(prompt, config=config, grade=grade)


def environment_kind(config: EnvironmentConfig) -> Callable[..., Environment]:
    """What makes the configured environments; also shows that its own code is there.

    Raises:
        ConfigError: As for :func:`make_environment`.
    """
    if config.hint is not None:
        import_hint(config.hint)
    if config.path is None:
        return UnaryFeedbackEnvironment
    kind = import_callable(
        config.path,
        what="environment",
        hint="An environment is a class whose objects have reset() and step(text)",
    )
    missing = [name for name in ("reset", "step") if not callable(getattr(kind, name, None))]
    if isinstance(kind, type) and missing:
        raise ConfigError(
            f"environment {config.path!r} has no method {missing[0]}()",
            "write the methods of drift_ray.tasks.environment.Environment",
        )
    return kind
