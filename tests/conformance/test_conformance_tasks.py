"""Parsing, episodes and graders do what the DRIFT reference does."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from drift_ray.config import EnvironmentConfig
from drift_ray.tasks.environment import UnaryFeedbackEnvironment
from drift_ray.tasks.graders import get_grader, grade_reference
from drift_ray.tasks.parsing import parse_response, prefill
from drift_ray.tasks.tool_calls import dialogue_metrics, parse_completion, parse_gold
from drift_ray.types import Prompt
from tests.conformance.cases import check_all


def test_parse_response() -> None:
    def check(case: dict[str, Any]) -> None:
        parsed = parse_response(
            prefill(case["think"]) + case["completion"],
            think=case["think"],
            max_actions_per_turn=case["max_actions_per_turn"],
        )
        assert parsed.canonical_text == case["message"]
        assert list(parsed.answers) == case["actions"]

    check_all("parse_response", check)


def test_episode() -> None:
    def check(case: dict[str, Any]) -> None:
        think, expected = case["think"], case["expected"]
        config = EnvironmentConfig(
            think=think,
            max_turns=case["max_turns"],
            max_actions_per_turn=case["max_actions_per_turn"],
            max_actions_per_traj=case["max_actions_per_traj"],
            format_penalty=case["format_penalty_per_turn"],
            system_prompt="Answer in tags.",
        )
        prompt = Prompt(prompt_id="p", task="t", question=case["question"], gold=case["gold"])
        environment = UnaryFeedbackEnvironment(prompt, config=config, grade=grade_reference)
        messages = list(environment.reset())
        roles = [message.role for message in messages]
        steps = []
        for completion in case["completions"]:
            steps.append(environment.step(prefill(think) + completion))
            roles.append("assistant")
            if steps[-1].feedback is not None:
                roles.append(steps[-1].feedback.role)

        # The script ends exactly where the episode does, and not a turn earlier.
        assert [step.done for step in steps] == [False] * (len(steps) - 1) + [True]
        assert roles == expected["roles"]
        assert [step.canonical_text for step in steps] == expected["assistant_messages"]
        rewards = [step.reward for step in steps] + [0.0] * (case["max_turns"] - len(steps))
        assert rewards == list(expected["turn_rewards"].values())
        assert rewards == list(expected["verifier"].values())
        assert next((k for k, r in enumerate(rewards, 1) if r), None) == expected["t_star"]
        norms = [norm for step in steps for norm in step.answer_norms]
        assert norms == expected["answer_norms"]
        penalty = sum(step.format_penalty for step in steps)
        assert penalty == pytest.approx(expected["format_penalty"], abs=1e-15)

    check_all("episodes", check)


def test_reference_grader() -> None:
    def check(case: dict[str, Any]) -> None:
        grade = get_grader({"name": "reference", "benchmark": case["dataset"]})
        verdict = grade(case["answer"], case["gold"])
        assert verdict.correct is case["correct"]
        assert verdict.valid is case["valid"]
        assert verdict.normalized == case["normalized"]

    check_all("graders", check)


def test_tool_calls() -> None:
    def check(case: dict[str, Any]) -> None:
        thought, predicted = parse_completion(case["completion"])
        expected = parse_gold(case["gold"])
        assert thought == case["thought"]
        assert [[call.name, call.arguments] for call in predicted] == case["predicted"]
        assert [[call.name, call.arguments] for call in expected] == case["expected_calls"]
        assert dataclasses.asdict(dialogue_metrics([(predicted, expected)])) == case["metrics"]

    check_all("tool_calls", check)
