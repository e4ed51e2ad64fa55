"""Grade the stored trajectories of a run anew: a verdict table beside the rollouts.

The verdicts in the rollout parts stay as they are. Parts are judged one after the other and
committed one by one, so an interrupted attempt goes on where it was.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pyarrow as pa

from drift_ray import __version__
from drift_ray.config import FOLDER_NAME, RunConfig
from drift_ray.errors import ConfigError, DataError, StageError
from drift_ray.grader_config import parse_grader
from drift_ray.lineage import digest
from drift_ray.progress import StageProgress
from drift_ray.rescoring.compare import compare
from drift_ray.rescoring.grading import (
    GradeMany,
    failure,
    grade_answers,
    grader_digest,
    grading,
)
from drift_ray.rescoring.verdicts import Answers, judge
from drift_ray.schema import (
    CONTENT_KEY,
    FAILURE_SCHEMA,
    FLIP_SCHEMA,
    RECIPE_KEY,
    SCHEMA_VERSION,
    SOURCE_KEY,
    TRAJECTORY_SCHEMA,
    VERDICT_SCHEMA,
    failure_table,
)
from drift_ray.store import FAILURES, ROLLOUTS, RUN_FILE, VERDICTS, RunStore
from drift_ray.weighting.part import check_columns, check_values, content_of, is_committed
from drift_ray.weighting.verdicts import verdict_name, verdict_summary_name

Summary = dict[str, Any]

FLIPS = "flips"
CHANGES_FILE = "weight_changes.parquet"
_COLUMNS = [
    "prompt_id",
    "trajectory_index",
    "gold",
    "first_success_turn",
    "format_penalty",
    *(
        f"turns.list.element.{name}"
        for name in ("answers", "answer_norms", "reward", "format_ok", "stop_reason")
    ),
]


def default_name(grader: str) -> str:
    """Name of a grader's verdict table: the grader's own, with a hash of its options if any.

    Args:
        grader: Canonical text, as ``task.grader`` holds it.
    """
    name = parse_grader(grader).name
    short = name.rpartition(":")[2]
    return short if grader == name else f"{short}-{digest(grader)[:6]}"


def rescore(
    store: RunStore,
    config: RunConfig,
    *,
    name: str,
    recorded_grader: str,
    retry_failed: bool = False,
) -> Summary:
    """Judge all trajectories by ``task.grader`` and say what that changes.

    Args:
        store: The run directory.
        config: Of the run, but for the grader.
        name: Of the verdict table: its folder under ``verdicts/``.
        recorded_grader: Whose verdicts stand in the rollout parts.
        retry_failed: Judge the parts again that have trajectories without a verdict.

    Returns:
        The summary that is also committed, as ``verdicts/NAME/summary.json``.

    Raises:
        ConfigError: The grader cannot be loaded, or the name is another grader's.
        DataError: A rollout part is truncated, foreign or of a newer schema, or lacks a value.
        GradingError: No process can grade any more; what is committed stays.
        StageError: There are no rollouts.
    """
    parts = store.parts(ROLLOUTS)
    if not parts:
        raise StageError(f"There are no rollouts in {store}.", "Run the rollout stage first.")
    _check_name(store, config, name)
    folder, recipe = f"{VERDICTS}/{name}", grader_digest(config)
    if retry_failed:
        for failed in store.parts(f"{folder}/{FAILURES}"):
            store.remove(verdict_name(failed, name))
    contents = _contents(store, parts)
    missing = [
        part
        for part in parts
        if not is_committed(
            store, verdict_name(part, name), VERDICT_SCHEMA, _origin(contents[part], recipe)
        )
    ]
    if missing:
        # Readers must never see new verdicts under an old summary.
        store.remove(verdict_summary_name(name))
        progress = StageProgress(
            "rescore", total=len(parts), unit="parts", done=len(parts) - len(missing)
        )
        with grading(config) as grade_many, progress:
            for part in missing:
                _judge_part(store, config, part, name, recipe, grade_many)
                progress.advance(1)
    _remove_orphans(store, parts, name)
    return _summarize(store, config, name, contents, recipe, recorded_grader)


def _check_name(store: RunStore, config: RunConfig, name: str) -> None:
    if not re.fullmatch(FOLDER_NAME, name):
        raise ConfigError(
            f"{name!r} cannot name a verdict table: it becomes a folder.",
            "Choose a --name of letters, digits, '.', '_' and '-'.",
        )
    summary = verdict_summary_name(name)
    other = store.read_json(summary)["grader"] if store.exists(summary) else config.task.grader
    if other != config.task.grader:
        raise ConfigError(
            f"The verdicts {name!r} in {store} are those of the grader {other}.",
            "Choose another --name.",
        )


def _contents(store: RunStore, parts: list[str]) -> dict[str, bytes]:
    found = store.check_parts(parts, TRAJECTORY_SCHEMA)
    for part, metadata in found.items():
        if CONTENT_KEY not in metadata:
            raise DataError(
                f"{store.path(part)} says nothing of its content in its metadata.",
                "Move it out of the run directory.",
            )
    return {part: metadata[CONTENT_KEY] for part, metadata in found.items()}


def _judge_part(
    store: RunStore,
    config: RunConfig,
    part: str,
    name: str,
    recipe: str,
    grade_many: GradeMany,
) -> None:
    table = store.read_table(part, TRAJECTORY_SCHEMA, _COLUMNS)
    where = store.path(part)
    check_columns(table, where)
    _check_texts(table, where)
    answers = Answers.of(table)
    grades, errors = grade_answers(answers, grade_many)
    judged = judge(table, answers, grades, config.task.environment)
    failures = [
        failure(
            table["prompt_id"][answers.row[at]].as_py(),
            table["trajectory_index"][answers.row[at]].as_py(),
            int(answers.turn_index[answers.turn[at]]),
            errors[at],
        )
        for at in judged.obstacles.tolist()
    ]
    beside = verdict_name(part, name)
    folder, file = beside.rsplit("/", 1)
    _replace(store, f"{folder}/{FLIPS}/{file}", judged.flips)
    _replace(store, f"{folder}/{FAILURES}/{file}", failure_table(failures))
    metadata = {**VERDICT_SCHEMA.metadata, **_origin(content_of(table), recipe)}
    # Last: a part that is there is work that is done.
    store.write_table(beside, judged.verdicts.replace_schema_metadata(metadata))


def _origin(content: bytes, recipe: str) -> dict[bytes, bytes]:
    """Metadata of the verdicts on a part: what they were made of."""
    return {SOURCE_KEY: content, RECIPE_KEY: recipe.encode()}


def _check_texts(table: pa.Table, where: str) -> None:
    """Refuse a gold or a list of answers that is missing, where nothing could be graded."""
    check_values(table["gold"].is_valid(), table["gold"], where, "gold")
    turns = table["turns"].combine_chunks()
    answers, rows = turns.flatten().field("answers"), turns.value_parent_indices().to_numpy()
    check_values(answers.is_valid(), answers, where, "turns.answers", rows)
    texts, rows = answers.flatten(), rows[answers.value_parent_indices().to_numpy()]
    check_values(texts.is_valid(), texts, where, "turns.answers", rows)


def _replace(store: RunStore, name: str, table: pa.Table) -> None:
    if table.num_rows:
        store.write_table(name, table)
    else:
        store.remove(name)


def _remove_orphans(store: RunStore, parts: list[str], name: str) -> None:
    """Drop verdicts on rollout parts that are no longer there."""
    files = {part.rsplit("/", 1)[1] for part in parts}
    for folder in ("", f"/{FLIPS}", f"/{FAILURES}"):
        for each in store.parts(f"{VERDICTS}/{name}{folder}"):
            if each.rsplit("/", 1)[1] not in files:
                store.remove(each)


def _summarize(
    store: RunStore,
    config: RunConfig,
    name: str,
    contents: dict[str, bytes],
    recipe: str,
    recorded_grader: str,
) -> Summary:
    folder, parts = f"{VERDICTS}/{name}", sorted(contents)
    weighting = config.weighting.model_copy(update={"verdicts": None})
    figures, changes = compare(store, parts, weighting, name)
    store.write_table(f"{folder}/{CHANGES_FILE}", changes)
    flips: Counter[bool] = Counter()
    for flip_part in store.parts(f"{folder}/{FLIPS}"):
        flips.update(store.read_table(flip_part, FLIP_SCHEMA)["is_correct"].to_pylist())
    failed: list[list[Any]] = []
    causes: Counter[str] = Counter()
    for failure_part in store.parts(f"{folder}/{FAILURES}"):
        rows = store.read_table(failure_part, FAILURE_SCHEMA).to_pylist()
        failed += [[row["prompt_id"], row["trajectory_index"]] for row in rows]
        causes.update(row["cause"] for row in rows)
    files = {part.rsplit("/", 1)[1]: contents[part].decode() for part in parts}
    run = store.read_json(RUN_FILE)
    summary = {
        # Verdicts follow from grader and trajectories, but for which answers resisted grading.
        "digest": digest(recipe, files, sorted(failed)),
        "rollouts": digest(run["fingerprint"]),
        "versions": {"drift_ray": __version__, "schema": SCHEMA_VERSION},
        "name": name,
        "grader": config.task.grader,
        "recorded_grader": recorded_grader,
        "recipe": recipe,
        "num_parts": len(parts),
        "num_flips": {"to_correct": flips[True], "to_wrong": flips[False]},
        "failure_causes": dict(causes),
        **figures,
        "parts": files,
    }
    store.write_json(verdict_summary_name(name), summary)
    return summary


def read_flips(store: RunStore, name: str, limit: int) -> list[dict[str, Any]]:
    """The first flipped verdicts: rows of ``FLIP_SCHEMA``."""
    rows: list[dict[str, Any]] = []
    for part in store.parts(f"{VERDICTS}/{name}/{FLIPS}"):
        if len(rows) >= limit:
            break
        rows += store.read_table(part, FLIP_SCHEMA).slice(0, limit - len(rows)).to_pylist()
    return rows


def first_failure(store: RunStore, name: str) -> str | None:
    """Why the first trajectory without a verdict has none; None if all have one."""
    for part in store.parts(f"{VERDICTS}/{name}/{FAILURES}"):
        for message in store.read_table(part, FAILURE_SCHEMA).column("message").to_pylist():
            return str(message)
    return None
