"""The grading pool inside a Ray actor, and with the grader that takes seconds to load."""

from __future__ import annotations

import os
import select
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from drift_ray.errors import GradingError
from drift_ray.tasks.grading_pool import GradingPool
from drift_ray.types import Verdict

ROOT = str(Path(__file__).parents[2])


class Judge:
    """Grades for many threads of one actor."""

    def __init__(self) -> None:
        self._pool = GradingPool("tests.unit.judges:moody", num_workers=2, deadline_s=1.0)

    def pids(self) -> list[int]:
        return self._pool.pids

    def grade(self, answers: list[str]) -> list[str]:
        def word(answer: str) -> str:
            try:
                return str(self._pool.grade(answer, "x").correct)
            except GradingError as error:
                return error.cause

        with ThreadPoolExecutor(8) as threads:
            return list(threads.map(word, answers))


def test_it_grades_in_an_actor_and_dies_with_it(ray_session: None) -> None:
    import ray

    runtime = {"env_vars": {"PYTHONPATH": ROOT}}
    judge = ray.remote(Judge).options(num_cpus=1, runtime_env=runtime).remote()
    answers = ["x", "hang", "y", "exit", "raise", *(["x"] * 20)]
    expected = ["True", "deadline", "False", "crash", "exception", *(["True"] * 20)]
    assert ray.get(judge.grade.remote(answers)) == expected
    handles = [os.pidfd_open(pid) for pid in ray.get(judge.pids.remote())]
    assert handles
    ray.kill(judge)
    for handle in handles:
        assert select.select([handle], [], [], 30.0)[0], "a grading process outlived its actor"
        os.close(handle)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(judge.pids.remote())


def test_the_math_grader_has_a_deadline() -> None:
    endless = r"9^{9 \cdot 9^{9}}"  # three billion digits, in one call that no signal interrupts
    with GradingPool("math", num_workers=1, deadline_s=2.0) as pool:
        results = pool.grade_many([("1/2", "0.5"), (endless, "7"), (r"\sqrt{8}", r"2\sqrt{2}")])
    right, hung, also_right = results
    assert isinstance(right, Verdict)
    assert right.correct
    assert isinstance(hung, GradingError)
    assert hung.cause == "deadline"
    assert isinstance(also_right, Verdict)
    assert also_right.correct
