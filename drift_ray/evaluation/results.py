"""Where evaluations lie in a run directory, and how finished ones are read back and compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from drift_ray.errors import DataError, StageError
from drift_ray.evaluation.comparison import OUTCOME_COLUMNS, Outcomes, compare
from drift_ray.lineage import recorded_config
from drift_ray.schema import FAILURE_SCHEMA, TRAJECTORY_SCHEMA
from drift_ray.store import EVALUATION, RUN_FILE, RunStore
from drift_ray.tasks.prompts import PromptSet

REFERENCE = "reference"
TRAINED = "trained"
COMPARISON_FILE = f"{EVALUATION}/comparison.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """Held-out prompts, and who judges."""

    name: str | None
    """Of the folder below the model's; None is ``task.test``, which needs none."""
    prompts: PromptSet
    grader: str


def evaluation_folder(model: str, benchmark: str | None = None) -> str:
    """Folder of a model's trajectories on ``task.test``, or on a benchmark of that name."""
    return "/".join([EVALUATION, model, *([benchmark] if benchmark else [])])


def metrics_name(folder: str) -> str:
    """Name of the metrics file of an evaluation's folder, written last."""
    return f"{folder}/metrics.json"


def read_outcomes(store: RunStore, folder: str, *, name: str) -> Outcomes:
    """Outcomes of a finished evaluation, with ``name`` for the model.

    Raises:
        DataError: A file is damaged or foreign.
    """
    metrics = store.read_json(metrics_name(folder))
    if not isinstance(metrics, dict) or not isinstance(metrics.get("max_turns"), int):
        raise DataError(f"{store.path(metrics_name(folder))} holds no metrics of drift_ray.")
    tables = [
        store.read_table(part, TRAJECTORY_SCHEMA, OUTCOME_COLUMNS) for part in store.parts(folder)
    ]
    if not tables:
        raise DataError(
            f"{store.path(folder)} holds metrics, but not the trajectories they were made of.",
            "Restore the parts, or run `drift-ray evaluate` again.",
        )
    failed: list[str] = []
    for file in store.failure_files(store.parts(folder)):
        table = store.read_table(file, FAILURE_SCHEMA, ["prompt_id"])
        failed += table["prompt_id"].to_pylist()
    return Outcomes.of(
        pa.concat_tables(tables),
        name=name,
        max_turns=metrics["max_turns"],
        failed_prompt_ids=failed,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedModel:
    """A model of a run directory that was evaluated there."""

    store: RunStore
    model: str
    folders: Mapping[str, str]
    """Folder of each finished evaluation, by the name of the task or benchmark."""

    def __str__(self) -> str:
        return f"{self.store}:{self.model}"

    @classmethod
    def find(cls, target: str) -> EvaluatedModel:
        """Find what ``RUN`` or ``RUN:MODEL`` names; the model is ``trained`` when omitted.

        Raises:
            ConfigError: There is no run.
            StageError: There is no finished evaluation of such a model.
        """
        url, _, model = target.rpartition(":")
        # The colon of a protocol, or of a directory's own name, names no model.
        if not url or "/" in model or RunStore(target).exists(RUN_FILE):
            url, model = target, TRAINED
        store = RunStore(url)
        config = recorded_config(store.url)
        folders = {
            config.task.name: evaluation_folder(model),
            **{name: evaluation_folder(model, name) for name in config.evaluation.benchmarks},
        }
        found = {
            name: folder for name, folder in folders.items() if store.exists(metrics_name(folder))
        }
        if not found:
            raise StageError(
                f"{store} holds no finished evaluation of a model {model!r}.",
                "Models are reference and trained; `drift-ray evaluate` evaluates them.",
            )
        return cls(store=store, model=model, folders=found)

    def metrics(self) -> dict[str, Any]:
        """Metrics of each evaluation, by the name of the task or benchmark."""
        return {
            name: self.store.read_json(metrics_name(folder))
            for name, folder in self.folders.items()
        }


def compare_models(baseline: EvaluatedModel, candidate: EvaluatedModel) -> dict[str, Any]:
    """Compare two evaluated models on every task and benchmark that both were evaluated on.

    Returns:
        :func:`drift_ray.evaluation.comparison.compare` by the name of the task or benchmark, each
        with ``different_settings``: values, there and here, of grader, environment and sampling
        where these are not the same, so that the models are not all that differs.

    Raises:
        TaskError: The prompts of one of them differ.
        StageError: They have no task and no benchmark in common.
        DataError: A file is damaged or foreign.
    """
    names = [name for name in baseline.folders if name in candidate.folders]
    if not names:
        raise StageError(
            f"{baseline} and {candidate} were evaluated on nothing of the same name: there "
            f"{', '.join(baseline.folders)}, here {', '.join(candidate.folders)}.",
            "Evaluate both on the same task or benchmark.",
        )
    before, after = baseline.metrics(), candidate.metrics()
    return {
        name: {
            **compare(
                *(
                    read_outcomes(each.store, each.folders[name], name=str(each))
                    for each in (baseline, candidate)
                )
            ),
            "different_settings": _differing(before[name]["settings"], after[name]["settings"]),
        }
        for name in names
    }


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {
        key: [before.get(key), after.get(key)]
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }
