"""Benchmarks by name: where their rows are, which of them count, and how a row becomes a prompt."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from drift_ray.errors import TaskError
from drift_ray.tasks import benchmark_rows as rows
from drift_ray.tasks.mtu_bench import mtu_bench


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """A public data set that this package knows."""

    name: str
    hub_id: str
    """On the Hugging Face hub."""
    split: str
    """Taken unless the configuration names another."""
    convert: Callable[[rows.Fields], rows.Pair]
    """A row's fields to question and gold; either is empty where the row has none."""
    asks: tuple[str, ...]
    """The field that is asked, by the names that it has; empty: the row's shape decides."""
    grader: str
    """A grader that suits it, for documentation: ``task.grader`` decides."""
    subsets: tuple[str, ...] | None = ()
    """Read one after the other; empty: it has none; None: all that the hub names."""
    type_prefix: str = ""
    """Rows whose ``type`` starts otherwise belong to another benchmark."""


_MATH_SUBSETS = (
    *("algebra", "counting_and_probability", "geometry", "intermediate_algebra"),
    *("number_theory", "prealgebra", "precalculus"),
)
BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="metamathqa",
            hub_id="meta-math/MetaMathQA",
            split="train",
            convert=rows.metamathqa,
            asks=("query",),
            grader="math",
            type_prefix="MATH_",
        ),
        Benchmark(
            name="math500",
            hub_id="HuggingFaceH4/MATH-500",
            split="test",
            convert=rows.problem_and_solution,
            asks=("problem",),
            grader="math",
        ),
        Benchmark(
            name="gsm8k",
            hub_id="openai/gsm8k",
            split="test",
            convert=rows.gsm8k,
            asks=("question",),
            grader="math",
            subsets=("main",),
        ),
        Benchmark(
            name="hendrycks_math",
            hub_id="EleutherAI/hendrycks_math",
            split="test",
            convert=rows.problem_and_solution,
            asks=("problem",),
            grader="math",
            subsets=_MATH_SUBSETS,
        ),
        Benchmark(
            name="theoremqa",
            hub_id="TIGER-Lab/TheoremQA",
            split="test",
            convert=rows.theoremqa,
            asks=("Question", "question"),
            grader='{"benchmark": "theoremqa", "name": "reference"}',
        ),
        Benchmark(
            name="gpqa",
            hub_id="Idavidrein/gpqa",
            split="train",
            convert=rows.gpqa,
            asks=("Question", "question"),
            grader="choice",
            subsets=("gpqa_diamond",),
        ),
        Benchmark(
            name="mmlu",
            hub_id="cais/mmlu",
            split="test",
            convert=rows.four_choices,
            asks=("question",),
            grader="choice",
            subsets=("all",),
        ),
        Benchmark(
            name="mmlu_redux",
            hub_id="edinburgh-dawg/mmlu-redux-2.0",
            split="test",
            convert=rows.four_choices,
            asks=("question",),
            grader="choice",
            subsets=None,
        ),
        Benchmark(
            name="mmlu_pro",
            hub_id="TIGER-Lab/MMLU-Pro",
            split="test",
            convert=rows.ten_choices,
            asks=("question",),
            grader="choice",
        ),
        Benchmark(
            name="mtu_bench",
            hub_id="wpei/MTU-Bench",
            split="test",
            convert=mtu_bench,
            asks=(),
            grader="drift_ray.tasks.tool_calls:grade_tool_calls",
        ),
    )
}


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of a name, in which hyphens are as good as underscores.

    Raises:
        TaskError: Unknown name; says which are known.
    """
    known = name.lower().replace("-", "_")
    if known not in BENCHMARKS:
        close = difflib.get_close_matches(known, BENCHMARKS, n=1)
        meant = f". Did you mean {close[0]!r}?" if close else ""
        raise TaskError(
            f"unknown benchmark {name!r}", hint=f"choose one of: {', '.join(BENCHMARKS)}{meant}"
        )
    return BENCHMARKS[known]
