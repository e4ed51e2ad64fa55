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
from drift_ray.store import RunStore
from tests.unit.documents import ROOT, Document, Fence, tracked_documents
from tests.unit.report_cases import finished_run, group

SNIPPETS = [
    fence
    for path in tracked_documents()
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


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with the runs that the documents speak of."""
    run = Path(finished_run(tmp_path / "made", [group("a"), group("b")]).url)
    (run / "model").symlink_to(model_dir())
    (tmp_path / "runs").mkdir()
    for name in ("first", "mine"):
        (tmp_path / "runs" / name).symlink_to(run)
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "Pipeline", Sampled)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda fence: f"line-{fence.line}")
@pytest.mark.usefixtures("workplace")
def test_it_runs(snippet: Fence, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    if snippet.language == "sql":
        names["rows"] = duckdb.sql(snippet.text).fetchall()
    else:
        exec(compile(snippet.text, f"line {snippet.line}", "exec"), names)
    (check,) = [each for sign, each in CHECKS.items() if sign in snippet.text]
    assert check(names, capsys.readouterr().out)
