"""Nothing that is evaluated may have been trained on."""

from __future__ import annotations

import pytest

from drift_ray.errors import TaskError
from drift_ray.tasks import addition
from drift_ray.tasks.holdout import check_disjoint
from drift_ray.types import Prompt


def prompt(prompt_id: str, question: str) -> Prompt:
    return Prompt(prompt_id=prompt_id, task="t", question=question, gold="1")


TRAIN = [prompt("a", "1+1=?"), prompt("b", "What is TWO?")]


def test_disjoint_sets_pass() -> None:
    check_disjoint(TRAIN, [prompt("c", "2+2=?")])
    check_disjoint([], TRAIN)
    check_disjoint(iter(TRAIN), iter([prompt("c", "x")]))
    # Two files may number their rows alike.
    check_disjoint(TRAIN, [prompt(TRAIN[0].prompt_id, "another")])


def test_the_splits_of_a_generator_are_disjoint() -> None:
    check_disjoint(addition.prompts("train", 500), addition.prompts("test", 500))


@pytest.mark.parametrize(
    "held_out",
    [prompt("x", "1+1=?"), prompt("x", " what  is two?\n")],
    ids=["question", "spelling"],
)
def test_a_shared_prompt_is_named(held_out: Prompt) -> None:
    with pytest.raises(TaskError) as caught:
        check_disjoint(TRAIN, [prompt("c", "fine"), held_out])
    message = str(caught.value)
    assert "1 prompts of task.test" in message
    assert repr(held_out.prompt_id) in message
    assert "'c'" not in message
    assert caught.value.hint


def test_many_shared_prompts_are_counted_and_the_first_named() -> None:
    many = [prompt(f"id-{k:02}", f"{k} " + "long " * 99) for k in range(50)]
    with pytest.raises(TaskError) as caught:
        check_disjoint(many, many)
    message = str(caught.value)
    assert message.startswith("50 prompts")
    assert "id-00" in message
    assert "id-49" not in message
    assert len(message) < 700


def test_an_id_is_no_question() -> None:
    check_disjoint([prompt("1+1=?", "x")], [prompt("c", "1+1=?")])
