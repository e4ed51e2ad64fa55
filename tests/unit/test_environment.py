"""The unary-feedback environment: budgets, penalties, wording."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.config import EnvironmentConfig
from drift_ray.tasks.environment import Environment, UnaryFeedbackEnvironment
from drift_ray.tasks.graders import grade_reference
from drift_ray.types import EndReason, Message, Prompt


def make(question: str = "6*7?", gold: str = "42", **settings: Any) -> Environment:
    config = EnvironmentConfig(**{"think": False, "system_prompt": None, **settings})
    prompt = Prompt(prompt_id="p", task="t", question=question, gold=gold)
    return UnaryFeedbackEnvironment(prompt, config=config, grade=grade_reference)


def test_opening_messages() -> None:
    assert make().reset() == (Message(role="user", content="6*7?"),)
    opening = make(system_prompt="Be brief.", user_template="Q: {question} A:").reset()
    assert opening == (
        Message(role="system", content="Be brief."),
        Message(role="user", content="Q: 6*7? A:"),
    )


@given(st.text())
def test_any_question_survives_the_template(question: str) -> None:
    (user,) = make(question + "{question}{x}{0", user_template="<{question}>").reset()
    assert user.content == f"<{question}" + "{question}{x}{0>"


def test_feedback_until_success() -> None:
    environment = make()
    environment.reset()
    wrong = environment.step("<answer>41</answer>")
    assert wrong.feedback == Message(role="user", content="Incorrect. Please think again.")
    assert (wrong.reward, wrong.done, wrong.end_reason) == (0.0, False, None)
    right = environment.step("<answer> 4 2</answer>")
    assert (right.reward, right.done, right.end_reason) == (1.0, True, EndReason.SUCCESS)
    assert right.feedback is None
    assert right.canonical_text == "<answer>4 2</answer>"
    assert (right.answers, right.answer_norms) == (("4 2",), ("42",))


def test_a_message_without_an_answer_costs_its_turn_and_no_action() -> None:
    environment = make(max_turns=3, max_actions_per_traj=1, format_penalty=-0.25)
    environment.reset()
    lost = environment.step("<answer>I do not know")
    assert (lost.format_ok, lost.format_penalty, lost.answers, lost.done) == (
        False,
        -0.25,
        (),
        False,
    )
    tried = environment.step("<answer>1</answer>")
    assert (tried.format_ok, tried.format_penalty) == (True, 0.0)
    assert tried.end_reason is EndReason.MAX_ACTIONS


def test_answers_run_in_order_up_to_the_first_correct_one() -> None:
    environment = make(max_actions_per_turn=0)
    environment.reset()
    step = environment.step("<answer>1 || 42 || 3</answer>")
    assert step.answers == ("1", "42")
    assert step.canonical_text == "<answer>1 || 42 || 3</answer>"
    assert step.end_reason is EndReason.SUCCESS


def test_answers_beyond_the_action_budget_are_not_executed() -> None:
    environment = make(max_actions_per_turn=0, max_actions_per_traj=2)
    environment.reset()
    step = environment.step("<answer>1 || 2 || 42</answer>")
    assert step.answers == ("1", "2")
    assert (step.reward, step.end_reason) == (0.0, EndReason.MAX_ACTIONS)


def test_the_turn_limit_is_named_when_both_budgets_end_together() -> None:
    environment = make(max_turns=1, max_actions_per_traj=1)
    environment.reset()
    assert environment.step("<answer>1</answer>").end_reason is EndReason.MAX_TURNS


def test_reset_starts_again_and_a_finished_episode_takes_no_step() -> None:
    environment = make(max_turns=1)
    environment.reset()
    environment.step("<answer>1</answer>")
    with pytest.raises(RuntimeError, match="reset"):
        environment.step("<answer>42</answer>")
    environment.reset()
    assert environment.step("<answer>42</answer>").reward == 1.0


@given(
    st.lists(
        st.sampled_from(["<answer>1</answer>", "<answer>", "<answer>2||3</answer>"]), min_size=9
    ),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(1, 4),
)
def test_no_budget_is_ever_exceeded(
    texts: list[str], max_turns: int, per_turn: int, per_traj: int
) -> None:
    environment = make(
        max_turns=max_turns, max_actions_per_turn=per_turn, max_actions_per_traj=per_traj
    )
    environment.reset()
    num_turns = num_actions = 0
    for text in texts:
        step = environment.step(text)
        num_turns, num_actions = num_turns + 1, num_actions + len(step.answers)
        assert len(step.answers) == len(step.answer_norms)
        assert (step.feedback is None) is step.done
        if step.done:
            break
    assert step.done
    assert num_turns <= max_turns
    assert num_actions <= per_traj
    assert num_turns == max_turns or num_actions == per_traj
