"""Nothing that is evaluated may have been trained on."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.errors import TaskError
from drift_ray.tasks import addition, holdout
from drift_ray.tasks.graders import normalize
from drift_ray.tasks.holdout import check_disjoint
from drift_ray.tasks.prompts import PromptSet
from drift_ray.types import Prompt


def prompt(prompt_id: str, question: str) -> Prompt:
    return Prompt(prompt_id=prompt_id, task="t", question=question, gold="1")


def held_out(*prompts: Prompt) -> PromptSet:
    return PromptSet.of(prompts, source="held out")


TRAIN = [prompt("a", "1+1=?"), prompt("b", "What is TWO?")]


def test_disjoint_sets_pass() -> None:
    check_disjoint(TRAIN, held_out(prompt("c", "2+2=?")))
    check_disjoint([], held_out(*TRAIN))
    check_disjoint(TRAIN, held_out())
    check_disjoint(iter(TRAIN), held_out(prompt("c", "x")))
    # Two files may number their rows alike.
    check_disjoint(TRAIN, held_out(prompt(TRAIN[0].prompt_id, "another")))


def test_the_splits_of_a_generator_are_disjoint() -> None:
    check_disjoint(addition.prompts("train", 500), held_out(*addition.prompts("test", 500)))


@pytest.mark.parametrize(
    "again",
    [prompt("x", "1+1=?"), prompt("x", " what  is two?\n")],
    ids=["question", "spelling"],
)
def test_a_shared_prompt_is_named(again: Prompt) -> None:
    with pytest.raises(TaskError) as caught:
        check_disjoint(TRAIN, held_out(prompt("c", "fine"), again))
    message = str(caught.value)
    assert "1 prompts of task.test" in message
    assert repr(again.prompt_id) in message
    assert "'c'" not in message
    assert caught.value.hint


def test_many_shared_prompts_are_counted_and_the_first_named() -> None:
    many = [prompt(f"id-{k:02}", f"{k} " + "long " * 99) for k in range(50)]
    with pytest.raises(TaskError) as caught:
        check_disjoint(many, held_out(*many))
    message = str(caught.value)
    assert message.startswith("50 prompts")
    assert "id-00" in message
    assert "id-49" not in message
    assert len(message) < 700


def test_an_id_is_no_question() -> None:
    check_disjoint([prompt("1+1=?", "x")], held_out(prompt("c", "1+1=?")))


QUESTIONS = st.lists(st.text("abAB \n", max_size=3), max_size=12)


@given(trained=QUESTIONS, tested=QUESTIONS, batch=st.integers(1, 5))
def test_streamed_is_as_good_as_listed(trained: list[str], tested: list[str], batch: int) -> None:
    train, test = (
        [prompt(f"{name}-{k}", text) for k, text in enumerate(questions)]
        for name, questions in (("train", trained), ("test", tested))
    )
    known = {normalize(text) for text in trained}
    shared = [each.prompt_id for each in test if normalize(each.question) in known]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holdout, "_BATCH_PROMPTS", batch)
        if not shared:
            check_disjoint(iter(train), held_out(*test))
            return
        with pytest.raises(TaskError) as caught:
            check_disjoint(iter(train), held_out(*test))
    message = str(caught.value)
    assert message.startswith(f"{len(shared)} prompts of task.test")
    assert re.findall(r"'(test-\d+)'", message) == shared[:3]
