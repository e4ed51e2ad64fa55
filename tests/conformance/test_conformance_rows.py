"""Rows of benchmarks become the questions and golds of the DRIFT reference."""

from __future__ import annotations

from typing import Any

from drift_ray.tasks.benchmarks import get_benchmark
from tests.conformance.cases import check_all


def test_dataset_row() -> None:
    def check(case: dict[str, Any]) -> None:
        question, gold = get_benchmark(case["dataset"]).convert(case["row"])
        assert question == case["question"]
        assert gold == case["gold"]

    check_all("dataset_rows", check)
