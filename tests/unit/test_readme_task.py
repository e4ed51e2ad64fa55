"""The task that the README shows works as it stands there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from drift_ray.config import TaskConfig
from drift_ray.tasks.environment import environment_kind, make_environment
from drift_ray.tasks.graders import get_grader
from drift_ray.tasks.grading_pool import GradingPool
from drift_ray.tasks.sources import load_prompts

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture
def snippets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The section's Python and YAML, laid out in a working directory as it says."""
    section = README.read_text(encoding="utf-8").split("### A task of your own")[1]
    found = dict(re.findall(r"```(python|yaml)\n(.*?)```", section, re.DOTALL)[:2])
    (tmp_path / "divisors.py").write_text(found["python"], encoding="utf-8")
    for split, numbers in (("train", (91, 15)), ("test", (77,))):
        rows = [
            {"question": f"Name a divisor of {n} but 1 and {n}.", "answer": str(n)} for n in numbers
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"divisors_{split}.jsonl").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "divisors", raising=False)
    return found


def test_it_has_at_most_15_lines(snippets: dict[str, str]) -> None:
    lines = [line for text in snippets.values() for line in text.splitlines() if line.strip()]
    assert len(lines) <= 15


def test_it_is_played_and_judged(snippets: dict[str, str]) -> None:
    task = TaskConfig.model_validate(yaml.safe_load(snippets["yaml"])["task"])
    prompts = list(load_prompts(task.train, task=task.name, seed=0))
    assert [prompt.gold for prompt in prompts] == ["91", "15"]
    environment_kind(task.environment)
    environment = make_environment(
        prompts[0], config=task.environment, grade=get_grader(task.grader)
    )
    environment.reset()
    wrong = environment.step("<think>hm</think><answer>9</answer>")
    assert wrong.feedback is not None
    assert wrong.feedback.content == "No: 9 is no divisor of 91 between the two. 4 turns left."
    assert environment.step("<think>hm</think><answer>13</answer>").reward == 1.0


def test_it_is_judged_in_a_process_of_its_own(snippets: dict[str, str]) -> None:
    task = TaskConfig.model_validate(yaml.safe_load(snippets["yaml"])["task"])
    pool = GradingPool(task.grader, num_workers=1, deadline_s=30)
    try:
        assert pool.grade("7", "91").correct
        assert not pool.grade("x", "91").correct
    finally:
        pool.close()
