"""The Python and SQL of the documents run as they stand there, on a run made without an engine.

The task of ``test_readme_task.py`` is run there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from drift_ray import api
from drift_ray.config import RunConfig
from drift_ray.nano import model_dir
from drift_ray.schema import failure_table
from drift_ray.store import RunStore
from tests.unit.documents import ROOT, Document, Fence, all_documents
from tests.unit.report_cases import finished_run, group

SNIPPETS = [
    fence
    for path in all_documents()
    for fence in Document.read(path).fences
    if fence.language in ("python", "sql") and not fence.text.startswith("def ")
]
Check = Callable[[dict[str, Any], str], bool]
CHECKS: dict[str, Check] = {
    "pyarrow.dataset": lambda names, printed: (
        names["rollouts"].count_rows() == 8 and "first_success_turn" in printed
    ),
    "ORDER BY": lambda names, printed: names["rows"][0][1] == 1 and len(names["rows"]) == 8,
    "AutoModelForCausalLM": lambda names, printed: "38+93=?" in printed and "</answer>" in printed,
    "drift_ray.rollout": lambda names, printed: (
        names["table"].column_names == ["prompt_id", "first_success_turn"]
    ),
}
"""By what a snippet can be told: whether its variables and what it printed are as they should."""


class Sampled:
    """In place of the pipeline, which needs an engine: the run is there already."""

    def __init__(self, config: RunConfig) -> None:
        self.store = RunStore(config.run)

    def run(self, stages: object) -> None:
        """There is nothing to do."""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the runs that the documents speak of."""
    place = tmp_path_factory.mktemp("workplace")
    store = finished_run(place / "made", [group("a"), group("b")])
    # What a reader must not stumble over.
    store.write_table("rollouts/failures/part-000000.parquet", failure_table([]))
    run = Path(store.url)
    (run / "model").symlink_to(model_dir())
    (place / "runs").mkdir()
    for name in ("first", "mine"):
        (place / "runs" / name).symlink_to(run)
    (place / "jobs").symlink_to(ROOT / "jobs")
    return place


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda fence: f"line-{fence.line}")
def test_it_runs(
    snippet: Fence,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(api, "Pipeline", Sampled)
    names: dict[str, Any] = {}
    if snippet.language == "sql":
        names["rows"] = duckdb.sql(snippet.text).fetchall()
    else:
        exec(compile(snippet.text, f"line {snippet.line}", "exec"), names)
    (check,) = [each for sign, each in CHECKS.items() if sign in snippet.text]
    assert check(names, capsys.readouterr().out)
