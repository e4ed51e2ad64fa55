"""Problems and scorers of reasoning-gym, by name and seed."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from drift_ray.config import PromptsConfig
from drift_ray.errors import ConfigError, TaskError
from drift_ray.tasks import reasoning_gym
from drift_ray.tasks.graders import get_grader, needs_process
from drift_ray.tasks.holdout import check_disjoint
from drift_ray.tasks.prompts import PromptSet
from drift_ray.tasks.sources import load_prompts


@pytest.fixture(autouse=True)
def _afresh() -> None:
    reasoning_gym._dataset.cache_clear()


def load(dataset: str, num_prompts: int = 5, *, run_seed: int = 0, **settings: Any) -> PromptSet:
    config = PromptsConfig(
        source="reasoning_gym", dataset=dataset, num_prompts=num_prompts, **settings
    )
    return load_prompts(config, task="t", seed=run_seed)


def test_name_and_seed_decide_the_prompts() -> None:
    prompts = load("chain_sum", options={"max_terms": 3})
    assert prompts == load("chain_sum", options={"max_terms": 3}, run_seed=7, seed=0)
    assert prompts != load("chain_sum", options={"max_terms": 3}, run_seed=7)
    assert prompts != load("chain_sum")
    assert len({prompt.question for prompt in prompts}) == 5


def test_splits_share_no_question_even_of_a_small_generator() -> None:
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    train = load("chain_sum", 30, options=options)
    test = load("chain_sum", 10, split="test", options=options)
    check_disjoint(train, test)
    with pytest.raises(TaskError, match=r"\d+ distinct questions of split 'train' among 50000"):
        load("chain_sum", 1000, options=options)


# What JSON does not keep (tuples, integer keys, objects), scorers need: golds are addresses.
@pytest.mark.parametrize("name", ["chain_sum", "word_ladder", "graph_color", "countdown"])
def test_the_scorer_meets_the_entry_again_in_a_fresh_process(name: str) -> None:
    (prompt,) = load(name, 1)
    reasoning_gym._dataset.cache_clear()
    address = json.loads(prompt.gold)
    entry = reasoning_gym._dataset(name, 0, 50, "{}")[address["index"]]
    reasoning_gym._dataset.cache_clear()
    grade = get_grader("reasoning_gym")
    if address["answer"] is not None:
        assert grade(address["answer"], prompt.gold).correct
    assert entry["question"] == prompt.question
    assert not grade("zzz", prompt.gold).correct
    assert not grade(" ", prompt.gold).valid


def test_the_tuples_of_an_entry_survive() -> None:
    (prompt,) = load("rearc", 1)
    assert get_grader("reasoning_gym")(json.loads(prompt.gold)["answer"], prompt.gold).correct


def test_partly_right_answers_count_from_the_score_on_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("drift_ray.tasks.graders.reasoning_gym.score", lambda answer, gold: 0.5)
    assert not get_grader("reasoning_gym")("a", "{}").correct
    assert get_grader({"name": "reasoning_gym", "min_score": 0.5})("a", "{}").correct
    assert needs_process("reasoning_gym")


def test_golds_of_another_source_or_version_are_never_graded() -> None:
    grade = get_grader("reasoning_gym")
    with pytest.raises(TaskError, match="names no entry"):
        grade("1", "42")
    (prompt,) = load("chain_sum", 1)
    other = json.dumps(json.loads(prompt.gold) | {"question": "0" * 16})
    with pytest.raises(TaskError, match="makes another entry"):
        grade("1", other)


def test_unknown_names_unusable_options_and_a_missing_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(TaskError, match="did you mean chain_sum"):
        load("chain_sums")
    with pytest.raises(TaskError, match="does not take the options"):
        load("chain_sum", options={"min_terms": -1})
    with pytest.raises(TaskError, match="does not take the options"):
        load("chain_sum", options={"nonsense": 1})
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match="reasoning-gym"):
        load("chain_sum")
