"""The weighting stage: Ray Data maps every rollout part to its table of importance weights.

Groups are whole within a part, so no row ever leaves its task: there is no shuffle. A weight table
is a few kilobytes beside its part, which makes reweighting cheap.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pyarrow as pa

from drift_ray.cluster import task_failure
from drift_ray.config import RunConfig, WeightingConfig
from drift_ray.errors import DataError, StageError
from drift_ray.lineage import Lineage
from drift_ray.progress import StageProgress
from drift_ray.schema import CONTENT_KEY, SOURCE_KEY, TRAJECTORY_SCHEMA, WEIGHT_SCHEMA
from drift_ray.store import ROLLOUTS, WEIGHTS, RunStore
from drift_ray.weighting.diagnostics import summarize
from drift_ray.weighting.importance import drop_all_failed, importance_weights
from drift_ray.weighting.returns import trajectory_returns

_COLUMNS = ["prompt_id", "trajectory_index", "turns", "format_penalty", "first_success_turn"]


def summary_name(config: WeightingConfig) -> str:
    """Name of the summary file, written last: it says that the stage is done, and for what."""
    return f"{WEIGHTS}/{config.name}/summary.json"


def is_done(store: RunStore, config: RunConfig, lineage: Lineage) -> bool:
    """Whether the weights of exactly these settings and rollouts are committed."""
    if not store.has_digest(summary_name(config.weighting), lineage.weights):
        return False
    weights = store.parts(f"{WEIGHTS}/{config.weighting.name}")
    sources = store.check_parts(weights, WEIGHT_SCHEMA)
    contents = store.check_parts(store.parts(ROLLOUTS), TRAJECTORY_SCHEMA)
    # A part that was sampled again since has other returns, whatever its name says.
    weighed = {_file(part): metadata.get(SOURCE_KEY) for part, metadata in sources.items()}
    return weighed == {_file(part): metadata[CONTENT_KEY] for part, metadata in contents.items()}


def run(store: RunStore, config: RunConfig, lineage: Lineage) -> dict[str, Any]:
    """Weigh all committed rollout parts; returns the summary that is also committed.

    Raises:
        StageError: There are no rollouts.
        DataError: A part is truncated, foreign, or holds a reward that is no number.
    """
    parts = store.parts(ROLLOUTS)
    if not parts:
        raise StageError(f"There are no rollouts in {store}.", "Run the rollout stage first.")
    weighting = config.weighting
    folder = f"{WEIGHTS}/{weighting.name}"
    # Readers must never see new weights under an old summary.
    store.remove(summary_name(weighting))
    weighed = _weigh_parts(store, weighting, parts)
    for orphan in {*store.parts(folder)} - {f"{folder}/{_file(part)}" for part in parts}:
        store.remove(orphan)
    summary = {
        "digest": lineage.weights,
        "rollouts": lineage.rollouts,
        "num_parts": len(parts),
        "parameters": weighting.model_dump(mode="json"),
        **summarize(
            group_ids=weighed["prompt_id"].to_numpy(),
            importance_weight=weighed["importance_weight"].to_numpy(),
            shaped_return=weighed["shaped_return"].to_numpy(),
            first_success_turn=weighed["first_success_turn"].to_numpy(),
        ),
    }
    store.write_json(summary_name(weighting), summary)
    return summary


def weigh_table(table: pa.Table, config: WeightingConfig) -> pa.Table:
    """Weight table of one part: columns of ``WEIGHT_SCHEMA``, rows as in the part.

    Raises:
        DataError: A return is NaN or infinite; names rows and groups.
    """
    returns = trajectory_returns(
        table, gamma=config.gamma, repetition_coefficient=config.repetition_penalty
    )
    groups = table["prompt_id"].to_numpy()
    weights = importance_weights(returns["shaped_return"], groups, beta=config.beta)
    if config.all_failed == "drop":
        weights = drop_all_failed(
            weights, groups, table["first_success_turn"].is_valid().to_numpy()
        )
    identity = table.select(["prompt_id", "trajectory_index"])
    columns = {**returns, "importance_weight": weights}
    return (
        pa.table(
            [*identity.columns, *(pa.array(column) for column in columns.values())],
            names=[*identity.column_names, *columns],
        )
        .cast(WEIGHT_SCHEMA)
        .replace_schema_metadata(
            {**WEIGHT_SCHEMA.metadata, SOURCE_KEY: table.schema.metadata[CONTENT_KEY]}
        )
    )


def _weigh_parts(store: RunStore, config: WeightingConfig, parts: list[str]) -> pa.Table:
    """Weigh and commit every part; returns what the summary needs of all of them."""
    import ray.data
    from ray.exceptions import RayTaskError

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # ours tell all it would
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    dataset = ray.data.from_items(
        [{"part": part} for part in parts], override_num_blocks=len(parts)
    ).map_batches(
        _weigh_batch,
        fn_kwargs={"run_url": store.url, "config": config},
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=1,
    )
    weighed = []
    try:
        with StageProgress("weigh", total=len(parts), unit="parts") as progress:
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                weighed.append(batch)
                progress.advance(len(np.unique(batch["part"].to_numpy())))
    except RayTaskError as error:
        raise task_failure(error, "Weighting") from error
    return pa.concat_tables(weighed)


def _weigh_batch(batch: pa.Table, *, run_url: str, config: WeightingConfig) -> pa.Table:
    store = RunStore(run_url)
    part = batch["part"][0].as_py()
    rollouts = store.read_table(part, TRAJECTORY_SCHEMA, _COLUMNS)
    try:
        weights = weigh_table(rollouts, config)
    except DataError as error:
        raise DataError(f"{store.path(part)}: {error.message}", error.hint) from error
    store.write_table(f"{WEIGHTS}/{config.name}/{_file(part)}", weights)
    return pa.table(
        {
            "part": pa.array([part] * weights.num_rows),
            "prompt_id": weights["prompt_id"],
            "importance_weight": weights["importance_weight"],
            "shaped_return": weights["shaped_return"],
            "first_success_turn": rollouts["first_success_turn"].fill_null(0),
        }
    )


def _file(part: str) -> str:
    return part.rsplit("/", 1)[1]
