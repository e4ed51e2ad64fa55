"""The stages as functions, for notebooks and programs: what ``import drift_ray`` offers.

    >>> import drift_ray
    >>> run = drift_ray.rollout("builtin:demo", "run=runs/mine")
    >>> drift_ray.weigh("builtin:demo", "run=runs/mine")["ess_frac"]["mean"]
    >>> table = drift_ray.load_trajectories(run, columns=["prompt_id", "importance_weight"])
    >>> table.to_pandas()

Each does what the command of its name does: finished work is skipped, interrupted work goes on.
They use the Ray this process is connected to, or else one of their own for the time of the call.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import Any

import pyarrow as pa

from drift_ray.config import RunConfig
from drift_ray.config_file import build_config, load_config
from drift_ray.lineage import recorded_config
from drift_ray.pipeline import Pipeline, Stage
from drift_ray.report.results import read_results
from drift_ray.report.trajectories import read_all
from drift_ray.store import MODEL, RUN_FILE, WEIGHTS, RunStore

Config = RunConfig | Mapping[str, Any] | str | PathLike[str]
"""A configuration: checked already, as a mapping of its sections, the path of a YAML file,
``builtin:NAME``, or a run directory, for the settings recorded there."""


def rollout(config: Config, *overrides: str) -> str:
    """Sample trajectories from the frozen reference policy.

    Args:
        config: What to do.
        overrides: Changed settings as on the command line, ``"rollout.group_size=8"``.

    Returns:
        The run directory, for :func:`load_trajectories`.

    Raises:
        DriftRayError: What is wrong, where, and what to do about it.
    """
    return _run(config, overrides, Stage.ROLLOUT).store.url


def weigh(config: Config, *overrides: str) -> dict[str, Any]:
    """Turn returns into importance weights. Arguments and errors as for :func:`rollout`.

    Returns:
        The summary: see :func:`drift_ray.weighting.diagnostics.summarize`.
    """
    pipeline = _run(config, overrides, Stage.WEIGH)
    name = pipeline.config.weighting.name
    return dict(pipeline.store.read_json(f"{WEIGHTS}/{name}/summary.json"))


def train(config: Config, *overrides: str) -> dict[str, Any]:
    """Fine-tune on the weighted trajectories. Arguments and errors as for :func:`rollout`.

    Returns:
        What was trained on and what came of it; the model itself is in ``model/`` of the run.
    """
    return dict(_run(config, overrides, Stage.TRAIN).store.read_json(f"{MODEL}/drift_ray.json"))


def evaluate(config: Config, *overrides: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Play held-out prompts with the reference policy and, once there is one, the trained model.

    Arguments and errors as for :func:`rollout`.

    Returns:
        Metrics by task or benchmark, then by ``"reference"`` and ``"trained"``: see
        :func:`drift_ray.evaluation.metrics.evaluation_metrics`.
    """
    return _run(config, overrides, Stage.EVALUATE).metrics()


def load_trajectories(
    run: str | PathLike[str],
    source: str = "rollouts",
    *,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Trajectories of a run directory, with their returns and importance weights.

    Args:
        run: The run directory: a path or any URL that fsspec knows.
        source: ``"rollouts"``, or a task or benchmark and a model that was evaluated on it, such
            as ``"addition/trained"``.
        columns: Read these only; token ids and log-probabilities take most of the memory.

    Returns:
        One row a trajectory, columns as in
        :data:`drift_ray.report.trajectories.WEIGHED_SCHEMA`. Returns and weights are null where
        a trajectory has not been weighed.

    Raises:
        ConfigError: There is no run.
        StageError: There are no such trajectories.
        DataError: A part is damaged, or there is no such column.
    """
    results = read_results(fspath(run))
    store = RunStore(fspath(run))
    return pa.concat_tables(read_all(store, results.source(store, source), columns))


def _run(config: Config, overrides: Sequence[str], stage: Stage) -> Pipeline:
    pipeline = Pipeline(_checked(config, overrides))
    pipeline.run({stage})
    return pipeline


def _checked(config: Config, overrides: Sequence[str]) -> RunConfig:
    if isinstance(config, RunConfig):
        raw: dict[str, Any] = config.model_dump(mode="json")
        return build_config(raw, overrides, where="the configuration") if overrides else config
    if isinstance(config, Mapping):
        return build_config(copy.deepcopy(dict(config)), overrides, where="the configuration")
    path = fspath(config)
    is_run = RunStore(path).exists(RUN_FILE)
    return recorded_config(path, overrides) if is_run else load_config(path, overrides)
