"""What the stages of a run left behind, read back in one go; what is not there yet is empty."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drift_ray.config import RunConfig
from drift_ray.errors import StageError
from drift_ray.evaluation.results import (
    COMPARISON_FILE,
    REFERENCE,
    TRAINED,
    evaluation_folder,
    metrics_name,
)
from drift_ray.lineage import recorded_config
from drift_ray.report.trajectories import Source
from drift_ray.schema import FAILURE_SCHEMA
from drift_ray.store import METRICS_FILE, MODEL, ROLLOUTS, RUN_FILE, WEIGHTS, RunStore

Figures = Mapping[str, Any]
_MODEL_FILE = f"{MODEL}/drift_ray.json"
_NUM_EXAMPLES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Failures:
    """Trajectories of one folder that could not be completed."""

    folder: str
    by_cause: Mapping[str, int]
    examples: Sequence[Figures]
    """A few rows of ``FAILURE_SCHEMA``, of different causes and messages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """What one sampling stage made, and how long it took."""

    stage: str
    num_trajectories: int
    num_turns: int
    num_sampled_tokens: int
    num_solved: int
    num_failures: int
    elapsed_s: float | None
    """Of all attempts, from the first replica that was up; None where one of them was cut off."""
    tokens_per_s: float | None
    """Of the attempts that came to their end; None where none did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResults:
    """All figures of a run."""

    url: str
    """Of the run directory, without a login."""
    config: RunConfig
    run: Figures
    """``run.json``."""
    evaluations: Mapping[str, Mapping[str, Figures]]
    """``metrics.json`` by task or benchmark, then by model."""
    comparisons: Mapping[str, Figures]
    """Trained against reference, by task or benchmark."""
    weights: Figures | None
    """``summary.json`` of the weighting."""
    rounds: Sequence[Figures]
    """One line a round; empty for a run that is not in rounds."""
    training: Sequence[Figures]
    """One line a step."""
    model: Figures | None
    """``model/drift_ray.json``."""
    sampling: Sequence[Sampling]
    failures: Sequence[Failures]
    stale: Sequence[str]
    """Sentences about what was made by other settings than what is beside it."""

    def sources(self, store: RunStore) -> dict[str, Source]:
        """Where its trajectories lie, by a name such as ``rollouts`` or ``addition/trained``."""
        found = {"rollouts": Source.rollouts(store, self.config.weighting.name)}
        for benchmark, models in self.evaluations.items():
            for model in models:
                folder = evaluation_folder(model, self._folder(benchmark))
                found[f"{benchmark}/{model}"] = Source(folder=folder)
        return {name: source for name, source in found.items() if store.parts(source.folder)}

    def source(self, store: RunStore, name: str) -> Source:
        """Where the trajectories of one such name lie.

        Raises:
            StageError: There are none; names those that are there.
        """
        sources = self.sources(store)
        if name not in sources:
            there = f"It has {', '.join(sources)}." if sources else "Run `drift-ray rollout` first."
            raise StageError(f"{self.url} has no trajectories {name!r}.", there)
        return sources[name]

    def _folder(self, benchmark: str) -> str | None:
        return None if benchmark == self.config.task.name else benchmark


def read_results(url: str) -> RunResults:
    """Read a run directory.

    Args:
        url: The run directory.

    Raises:
        ConfigError: There is no run.
        DataError: A file is damaged.
    """
    config = recorded_config(url)
    store = RunStore(url)
    lines = _lines(store)
    model = _json(store, _MODEL_FILE)
    evaluations = _evaluations(store, config)
    comparison = _json(store, COMPARISON_FILE) or {}
    return RunResults(
        url=str(store),
        config=config,
        run=store.read_json(RUN_FILE),
        evaluations=evaluations,
        comparisons={
            name: each
            for name, each in comparison.get("comparisons", {}).items()
            if len(evaluations.get(name, {})) > 1
        },
        weights=_json(store, f"{WEIGHTS}/{config.weighting.name}/summary.json"),
        rounds=_rounds(lines),
        training=_training(lines, model),
        model=model,
        sampling=_sampling(lines),
        failures=_failures(store, evaluations, config),
        stale=_stale(evaluations, model),
    )


def _evaluations(store: RunStore, config: RunConfig) -> dict[str, dict[str, Figures]]:
    benchmarks = {config.task.name: None, **{name: name for name in config.evaluation.benchmarks}}
    found = {
        shown: {
            model: metrics
            for model in (REFERENCE, TRAINED)
            if (metrics := _json(store, metrics_name(evaluation_folder(model, benchmark))))
        }
        for shown, benchmark in benchmarks.items()
    }
    return {shown: models for shown, models in found.items() if models}


def _rounds(lines: Sequence[Figures]) -> list[Figures]:
    newest = {line["round"]: line for line in lines if line.get("stage") == "round"}
    return [newest[number] for number in sorted(newest)]


def _training(lines: Sequence[Figures], model: Figures | None) -> list[Figures]:
    """The steps of the model that is there, or else of the training that was begun last."""
    steps = [line for line in lines if line.get("stage") == "training"]
    digests = [line["digest"] for line in steps]
    wanted = model["digest"] if model and model["digest"] in digests else None
    wanted = wanted or (digests[-1] if digests else None)
    return sorted(
        (line for line in steps if line["digest"] == wanted), key=lambda each: each["step"]
    )


def _sampling(lines: Sequence[Figures]) -> list[Sampling]:
    parts: dict[str, dict[str, Figures]] = {}
    ends: dict[str, list[Figures]] = {}
    for line in lines:
        if "num_sampled_tokens" not in line:
            continue
        if "name" in line:  # a part that was made again counts once
            parts.setdefault(line["stage"], {})[line["name"]] = line
        elif line.get("event") == "end":
            ends.setdefault(line["stage"], []).append(line)
    return [_stage(stage, [*of.values()], ends.get(stage, [])) for stage, of in parts.items()]


def _stage(stage: str, parts: Sequence[Figures], ends: Sequence[Figures]) -> Sampling:
    def total(name: str, of: Sequence[Figures] = parts) -> Any:
        return sum(line[name] for line in of)

    seconds = total("duration_s", ends)
    is_whole = total("num_trajectories", ends) >= total("num_trajectories")
    return Sampling(
        stage=stage,
        num_trajectories=total("num_trajectories"),
        num_turns=total("num_turns"),
        num_sampled_tokens=total("num_sampled_tokens"),
        num_solved=total("num_solved"),
        num_failures=total("num_failures"),
        elapsed_s=seconds if seconds and is_whole else None,
        tokens_per_s=total("num_sampled_tokens", ends) / seconds if seconds else None,
    )


def _failures(
    store: RunStore, evaluations: Mapping[str, Mapping[str, Figures]], config: RunConfig
) -> list[Failures]:
    folders = [ROLLOUTS]
    for benchmark, models in evaluations.items():
        name = None if benchmark == config.task.name else benchmark
        folders += [evaluation_folder(model, name) for model in models]
    found = []
    for folder in folders:
        rows: list[Figures] = []
        for file in store.failure_files(store.parts(folder)):
            rows += store.read_table(file, FAILURE_SCHEMA).to_pylist()
        if rows:
            distinct = {(row["cause"], row["message"]): row for row in reversed(rows)}
            found.append(
                Failures(
                    folder=folder,
                    by_cause=dict(Counter(row["cause"] for row in rows).most_common()),
                    examples=list(distinct.values())[::-1][:_NUM_EXAMPLES],
                )
            )
    return found


def _stale(evaluations: Mapping[str, Mapping[str, Figures]], model: Figures | None) -> list[str]:
    return [
        f"The evaluation of the trained model on {benchmark} is of an earlier training than the "
        "model that is there now: run `drift-ray evaluate` again."
        for benchmark, models in evaluations.items()
        if model and TRAINED in models and models[TRAINED].get("policy") != model["digest"]
    ]


def _json(store: RunStore, name: str) -> Any:
    return store.read_json(name) if store.exists(name) else None


def _lines(store: RunStore) -> list[Figures]:
    if not store.exists(METRICS_FILE):
        return []
    lines = []
    for line in store.fs.cat_file(store.path(METRICS_FILE)).splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:  # a writer that was killed leaves half a line
            continue
    return [line for line in lines if isinstance(line, dict)]
