"""Two-digit addition: the splits and the prompts drawn from them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_ray.errors import TaskError
from drift_ray.tasks.addition import OPERANDS, Split, pairs, prompts, split_of

operand = st.integers(OPERANDS.start, OPERANDS.stop - 1)
NUM_PROMPTS: dict[Split, int] = {"train": 6412, "test": 1688}


@given(a=operand, b=operand)
def test_a_sum_and_its_mirror_share_a_split(a: int, b: int) -> None:
    assert split_of(a, b) == split_of(b, a)


def test_splits_are_disjoint_and_exhaustive_also_as_questions() -> None:
    train, test = set(pairs("train")), set(pairs("test"))
    assert not train & test
    assert len(train | test) == 90 * 91 // 2
    assert 0.18 < len(test) / len(train | test) < 0.22
    asked = {split: {p.question for p in prompts(split, n)} for split, n in NUM_PROMPTS.items()}
    mirrored = {f"{b}+{a}=?" for a, b in (q[:-2].split("+") for q in asked["train"])}
    assert not mirrored & asked["test"]
    assert len(asked["train"] | asked["test"]) == 90 * 90


def test_the_split_is_frozen() -> None:
    # Runs are compared across versions, and the shipped model was trained on this split.
    assert [b for b in range(30, 40) if split_of(48, b) == "test"] == [32, 34]


def test_a_prompt_says_question_answer_and_id() -> None:
    for prompt in prompts("test", 50, seed=3):
        a, b = (int(x) for x in prompt.question.removesuffix("=?").split("+"))
        assert prompt.gold == str(a + b)
        assert prompt.prompt_id == f"addition-{a}+{b}"
        assert prompt.task == "addition"


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), num=st.integers(1, 400))
def test_prompts_are_distinct_sums_and_a_prefix_of_longer_draws(seed: int, num: int) -> None:
    drawn = prompts("test", num, seed)
    assert drawn == prompts("test", 400, seed)[:num]
    sums = {frozenset(p.question.removesuffix("=?").split("+")) for p in drawn}
    assert len(sums) == num


def test_seeds_differ() -> None:
    assert prompts("train", 20, seed=0) != prompts("train", 20, seed=1)


@pytest.mark.parametrize("num", [0, -1, 1689])
def test_a_number_the_split_does_not_have_is_refused(num: int) -> None:
    with pytest.raises(TaskError, match=r"'test', which has 1688"):
        prompts("test", num)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(TaskError, match="'validation'"):
        prompts("validation", 1)  # type: ignore[arg-type]
