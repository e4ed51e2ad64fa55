"""Feedback by template and hint, and environments of one's own by import path."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from drift_ray.config import EnvironmentConfig
from drift_ray.errors import ConfigError
from drift_ray.tasks.environment import Environment, environment_kind, make_environment
from drift_ray.tasks.graders import grade_reference
from drift_ray.types import Prompt

OWN = "tests.unit.own_task"


def make(**settings: Any) -> Environment:
    config = EnvironmentConfig(**{"think": False, "system_prompt": None, **settings})
    prompt = Prompt(prompt_id="p", task="t", question="6*7?", gold="42")
    return make_environment(prompt, config=config, grade=grade_reference)


def hear(environment: Environment, *texts: str) -> list[str | None]:
    environment.reset()
    steps = [environment.step(text) for text in texts]
    return [step.feedback and step.feedback.content for step in steps]


def test_full_feedback_tells_reward_turn_and_budgets() -> None:
    environment = make(
        feedback="Reward {reward}, turn {turn}/{max_turns}, {turns_left} turns and "
        "{actions_left} actions left; {answer} is wrong, {x}.",
        max_actions_per_traj=4,
    )
    said = hear(environment, "<answer>41</answer>", "none", "<answer>{turn}</answer>")
    assert said == [
        "Reward 0.0, turn 1/5, 4 turns and 3 actions left; 41 is wrong, {x}.",
        "Reward 0.0, turn 2/5, 3 turns and 3 actions left;  is wrong, {x}.",
        "Reward 0.0, turn 3/5, 2 turns and 2 actions left; {turn} is wrong, {x}.",
    ]


def test_a_hint_by_import_path_is_part_of_the_wording() -> None:
    environment = make(feedback="Wrong: {hint}.", hint=f"{OWN}:high_low", max_actions_per_turn=0)
    said = hear(environment, "<answer>1||43</answer>", "none", "<answer>41</answer>")
    assert said == ["Wrong: too high {turn}.", "Wrong: .", "Wrong: too low."]


def test_a_hint_that_is_no_text_or_raises_is_an_error() -> None:
    with pytest.raises(TypeError, match="no_text returned 7"):
        hear(make(feedback="{hint}", hint=f"{OWN}:no_text"), "<answer>1</answer>")
    with pytest.raises(ValueError, match="float"):
        hear(make(feedback="{hint}", hint=f"{OWN}:high_low"), "<answer>one</answer>")


def test_an_environment_of_ones_own() -> None:
    environment = make(path=f"{OWN}:Polite", options={"greeting": "Hello!"})
    assert [message.content for message in environment.reset()] == ["Hello!", "6*7?"]
    assert environment.step("<answer>42</answer>").reward == 1.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"path": "no.such.module:E"}, "no module 'no'"),
        ({"path": f"{OWN}:Missing"}, "has no 'Missing'"),
        ({"path": f"{OWN}:OWN"}, "has no 'OWN'"),
        ({"path": f"{OWN}:NoStep"}, "no method step()"),
        ({"hint": f"{OWN}:missing", "feedback": "{hint}"}, "has no 'missing'"),
    ],
)
def test_unusable_code_is_refused_before_anything_starts(
    settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        environment_kind(EnvironmentConfig(**settings))
    assert said in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"feedback": "{hint}"}, "exactly if hint is set"),
        ({"hint": "a:b"}, "exactly if hint is set"),
        ({"feedback": "{turn_left} left"}, "did you mean {turns_left}"),
        ({"path": "nonsense"}, "pattern"),
        ({"options": {"a": 1}}, "set path"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        EnvironmentConfig(**settings)
