"""Every distinct answer of a part is graded once, in processes where the grader needs them."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from drift_ray.config import RunConfig
from drift_ray.errors import ConfigError, GradingError
from drift_ray.grader_config import CustomGraderConfig, parse_grader
from drift_ray.lineage import digest
from drift_ray.rescoring.verdicts import Answers, Grades
from drift_ray.tasks.graders import get_grader, needs_process
from drift_ray.tasks.grading_pool import GradingPool
from drift_ray.types import Failure, FailureCause, Verdict

GradeMany = Callable[[Sequence[tuple[str, str]]], Sequence[Verdict | GradingError]]
"""Pairs of answer and gold to a verdict each, or what prevented it."""


@contextmanager
def grading(config: RunConfig) -> Iterator[GradeMany]:
    """Grade with ``task.grader``, in ``replicas.grading_processes`` processes if it needs them.

    Raises:
        ConfigError: The grader does not exist or cannot be loaded.
        GradingError: No process can grade any more.
    """
    choice = config.task.grader
    if not needs_process(choice):
        grade = get_grader(choice)
        yield lambda pairs: [grade(answer, gold) for answer, gold in pairs]
        return
    replicas = config.replicas
    with GradingPool(
        choice, num_workers=replicas.grading_processes, deadline_s=replicas.grading_deadline_s
    ) as pool:

        def grade_many(pairs: Sequence[tuple[str, str]]) -> Sequence[Verdict | GradingError]:
            results = pool.grade_many(pairs)
            pool.grade_many([])  # raises if the pool broke down: then no answer is to blame
            return results

        yield grade_many


def grade_answers(
    answers: Answers, grade_many: GradeMany
) -> tuple[Grades, dict[int, GradingError]]:
    """Grade all answers of a part, equal ones once.

    Returns:
        The grades, and for each answer that could not be graded its error.
    """
    texts, golds = answers.text.dictionary_encode(), answers.gold.dictionary_encode()
    num_golds = max(len(golds.dictionary), 1)
    gold_codes = golds.indices.to_numpy().astype(np.int64)[answers.row]
    # One integer stands for a pair of answer and gold.
    codes = texts.indices.to_numpy().astype(np.int64) * num_golds + gold_codes
    encoded = pa.array(codes, pa.int64()).dictionary_encode()
    distinct, which = encoded.dictionary.to_numpy(), encoded.indices.to_numpy()
    pairs = list(
        zip(
            texts.dictionary.take(pa.array(distinct // num_golds)).to_pylist(),
            golds.dictionary.take(pa.array(distinct % num_golds)).to_pylist(),
            strict=True,
        )
    )
    results = grade_many(pairs)
    errors = {i: each for i, each in enumerate(results) if isinstance(each, GradingError)}
    verdicts = [None if isinstance(each, GradingError) else each for each in results]
    correct = np.array([each is not None and each.correct for each in verdicts], np.bool_)
    failed = np.array([each is None for each in verdicts], np.bool_)
    norms = pa.array([None if each is None else each.normalized for each in verdicts], pa.string())
    grades = Grades(
        correct=correct[which], failed=failed[which], normalized=norms.take(encoded.indices)
    )
    return grades, {int(at): errors[int(which[at])] for at in np.flatnonzero(grades.failed)}


def failure(prompt_id: str, trajectory_index: int, turn_index: int, error: GradingError) -> Failure:
    """The record of a trajectory without a verdict."""
    return Failure(
        prompt_id=prompt_id,
        trajectory_index=trajectory_index,
        turn_index=turn_index,
        cause=FailureCause.DEADLINE if error.cause == "deadline" else FailureCause.GRADER,
        message=str(error),
        trace=error.trace,
    )


def grader_digest(config: RunConfig) -> str:
    """Identifies what verdicts depend on beside the trajectories: grader, its code, and budgets."""
    choice = parse_grader(config.task.grader)
    code = _source_hash(choice.name) if isinstance(choice, CustomGraderConfig) else ""
    return digest(config.task.grader, code, config.task.environment)


def _source_hash(path: str) -> str:
    try:
        source = inspect.getsource(importlib.import_module(path.partition(":")[0]))
    except (OSError, TypeError, ImportError) as error:
        raise ConfigError(
            f"The source of grader {path!r} cannot be read: {error}.",
            "Wrap it in a Python function of your own: verdicts are redone when its code changes.",
        ) from error
    return hashlib.blake2b(source.encode(), digest_size=8).hexdigest()
