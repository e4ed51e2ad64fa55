"""Wrong configurations and prompt files: each works, or an error says where not.

A thousand of each kind: ``pytest --hypothesis-profile=thorough tests/unit/test_fuzz.py``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drift_ray.cli import main
from drift_ray.config import PromptsConfig, RunConfig
from drift_ray.config_file import build_config, load_config
from drift_ray.errors import ConfigError, DriftRayError, TaskError
from drift_ray.pipeline import Pipeline, Stage
from drift_ray.planning.figures import read_figures
from drift_ray.planning.plan import Plan, make_plan
from drift_ray.tasks.sources import load_prompts
from tests.unit.fuzzing import GOOD_ROWS, ROWS, places, row_files, wrong_files, wrong_settings

LONGEST = 6000
"""Characters of a message that someone still reads."""
DOCUMENTED = {0, 2, 3, 4, 5, 6, 7, 8}


unhurried = settings(suppress_health_check=list(HealthCheck), derandomize=True, database=None)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty working directory: what relative paths mean."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("fuzz")
    os.chdir(folder)
    yield folder
    os.chdir(before)


Result = TypeVar("Result")


def attempt(
    call: Callable[[], Result], kind: type[DriftRayError] = DriftRayError
) -> tuple[Result | None, str]:
    """What a call returns, and what its error says; any other exception is a bug."""
    try:
        return call(), ""
    except kind as error:
        assert len(str(error)) < LONGEST  # noqa: PT017
        return None, str(error)


def check_plan(config: RunConfig) -> None:
    """As ``--dry-run`` does; its errors name a setting, or what one of them is."""

    def plan() -> Plan:
        pipeline = Pipeline(config)
        return make_plan(pipeline, frozenset(Stage), read_figures(pipeline.store))

    planned, said = attempt(plan)
    settings = config.model_dump(mode="json")
    values = [at(settings, place) for place in places(settings)]
    named = {value for value in values if isinstance(value, str) and len(value) > 3}
    named |= {".".join(map(str, place)) for place in places(settings) if len(place) > 1}
    assert planned or any(name in said for name in named), said


def at(tree: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        tree = tree[key]
    return tree


@unhurried
@given(raw=wrong_settings())
def test_any_settings_are_planned_or_refused(folder: Path, raw: dict[str, Any]) -> None:
    config, said = attempt(lambda: build_config(raw, [], where="file.yaml"), ConfigError)
    if config is None:
        assert said.startswith("file.yaml has wrong settings:\n  ")
    else:
        check_plan(config)


@unhurried
@given(data=wrong_files())
def test_any_file_is_planned_or_refused(folder: Path, data: bytes) -> None:
    path = folder / "wrong.yaml"
    path.write_bytes(data)
    config, said = attempt(lambda: load_config(path), ConfigError)
    if config is None:
        assert str(path) in said
    else:
        check_plan(config)


@unhurried
@given(data=wrong_files())
def test_any_file_gives_a_documented_exit_code(folder: Path, data: bytes) -> None:
    (folder / "wrong.yaml").write_bytes(data)
    assert main(["run", "wrong.yaml", "--dry-run", "--json"]) in DOCUMENTED


OPTIONS = st.fixed_dictionaries(
    {"on_bad_row": st.sampled_from(["stop", "skip"]), "max_question_chars": st.just(50)},
    optional={"id_field": st.sampled_from(["id", "", "nope"]), "num_prompts": st.integers(1, 4)},
)


def check_prompts(source: str, path: Path, options: dict[str, Any]) -> None:
    config = PromptsConfig(source=source, path=str(path), **options)
    prompts, said = attempt(lambda: load_prompts(config, task="t", seed=0), TaskError)
    if prompts is None:
        assert str(path) in said
    else:
        read = list(prompts)
        assert len(read) == len({prompt.prompt_id for prompt in read}) == len(prompts) > 0
        assert all(prompt.question.strip() and prompt.gold.strip() for prompt in read)


@unhurried
@given(data=row_files(), options=OPTIONS, source=st.sampled_from(["jsonl", "jsonl", "csv"]))
def test_any_lines_are_prompts_or_refused(
    folder: Path, data: bytes, options: dict[str, Any], source: str
) -> None:
    (folder / "rows").write_bytes(data)
    check_prompts(source, folder / "rows", options)


@unhurried
@given(rows=st.lists(GOOD_ROWS | ROWS, max_size=6), options=OPTIONS, cut=st.booleans())
def test_any_parquet_is_prompts_or_refused(
    folder: Path, rows: list[dict[str, Any]], options: dict[str, Any], cut: bool
) -> None:
    path = folder / "rows.parquet"
    names = sorted({name for row in rows for name in row})
    pq.write_table(
        pa.table({name: column([row.get(name) for row in rows]) for name in names}), path
    )
    if cut:
        path.write_bytes(path.read_bytes()[:-9])
    check_prompts("parquet", path, options)


def column(values: list[Any]) -> pa.Array:
    """Of the values' own type, or of their text where Parquet has none for them."""
    try:
        own = pa.array(values)
        pq.write_table(pa.table({"column": own}), pa.BufferOutputStream())
        return own
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        texts = [None if value is None else json.dumps(value) for value in values]
        return pa.array(texts, pa.string())
