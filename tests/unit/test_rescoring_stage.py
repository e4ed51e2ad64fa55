"""Rescoring a run directory: tables beside the rollouts, resumed, never a failure as a 0."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from drift_ray.cli import main
from drift_ray.config import RunConfig
from drift_ray.errors import ConfigError, DataError, StageError
from drift_ray.lineage import recorded_config, trace
from drift_ray.rescoring import stage
from drift_ray.rescoring.stage import default_name, first_failure, read_flips
from drift_ray.schema import trajectory_table
from drift_ray.store import RUN_FILE, RunStore
from drift_ray.tasks.sources import load_prompts
from drift_ray.types import Trajectory
from tests.unit.rescoring_cases import part, played
from tests.unit.scripted import run_config

LENIENT = "tests.unit.judges:lenient"
PARTS = [
    part([[["3"], ["2"], ["1"]], [["3"], ["3"]], [["1"]], [["2"]]]),
    [dataclasses.replace(row, prompt_id=f"q{row.prompt_id}") for row in part([[["1"]], [["3"]]])],
]
UNGRADED = [played("r", 0, [["raise"], ["1"]]), played("r", 1, [["1"]]), played("r", 2, [["3"]])]


def run_of(folder: Path, parts: list[list[Trajectory]]) -> RunStore:
    store = RunStore(str(folder / "run"))
    config = run_config(folder)
    fields = {"fingerprint": {}, "config": config.model_dump(mode="json")}
    store.write_json(RUN_FILE, fields)
    for number, rows in enumerate(parts):
        store.write_table(f"rollouts/part-{number:06d}.parquet", trajectory_table(rows))
    return store


def config_of(store: RunStore, grader: str, *overrides: str) -> RunConfig:
    return recorded_config(
        store.url, [f"task.grader={grader}", "replicas.grading_processes=1", *overrides]
    )


def rescore(store: RunStore, grader: str, *, name: str = "new", **options: Any) -> stage.Summary:
    return stage.rescore(
        store, config_of(store, grader), name=name, recorded_grader="reference", **options
    )


def files(store: RunStore) -> dict[str, bytes]:
    root = Path(store.url)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.parquet")}


def test_the_recorded_grader_flips_nothing(tmp_path: Path) -> None:
    store = run_of(tmp_path, PARTS)
    before = files(store)
    summary = rescore(store, "reference", name="same")
    assert summary["num_flips"] == {"to_correct": 0, "to_wrong": 0}
    assert summary["num_changed"] == summary["num_censored"] == summary["num_without_verdict"] == 0
    assert summary["weights"]["num_changed"] == 0
    assert summary["weights"]["before"] == summary["weights"]["after"]
    assert {name: files(store)[name] for name in before} == before
    assert read_flips(store, "same", 9) == []
    assert first_failure(store, "same") is None


def test_flips_and_the_weights_that_they_change(tmp_path: Path) -> None:
    store = run_of(tmp_path, PARTS)
    summary = rescore(store, LENIENT)
    assert summary["num_flips"] == {"to_correct": 2, "to_wrong": 0}
    assert (summary["num_solved_before"], summary["num_solved_after"]) == (3, 4)
    assert summary["num_changed"] == 2
    flips = [
        (flip["prompt_id"], flip["trajectory_index"], flip["turn_index"])
        for flip in read_flips(store, "new", 9)
    ]
    assert flips == [("p0", 0, 1), ("p1", 1, 0)]
    assert len(read_flips(store, "new", 1)) == 1
    changes = pq.read_table(store.path("verdicts/new/weight_changes.parquet")).to_pylist()
    assert {change["prompt_id"] for change in changes} == {"p0", "p1"}
    assert len(changes) == summary["weights"]["num_changed"] == 4
    sizes = [abs(change["after"] - change["before"]) for change in changes]
    assert sizes == sorted(sizes, reverse=True)
    assert summary["weights"]["largest_change"] == changes[0]
    assert summary["weights"]["after"]["ess_frac"] > summary["weights"]["before"]["ess_frac"]


def test_what_resists_grading_is_listed_and_never_a_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = run_of(tmp_path, [*PARTS, UNGRADED])
    summary = rescore(store, LENIENT)
    assert summary["num_without_verdict"] == 1
    assert summary["failure_causes"] == {"grader": 1}
    (failed,) = pq.read_table(store.path("verdicts/new/failures/part-000002.parquet")).to_pylist()
    assert (failed["prompt_id"], failed["trajectory_index"], failed["turn_index"]) == ("r", 0, 0)
    assert "not today" in failed["message"]
    assert first_failure(store, "new") == failed["message"]
    rows = pq.read_table(store.path("verdicts/new/part-000002.parquet")).to_pylist()
    assert [row["first_success_turn"] for row in rows] == [None, 1, None]
    assert [row["has_verdict"] for row in rows] == [False, True, True]
    calm = tmp_path / "calm"
    calm.touch()
    monkeypatch.setenv("LENIENT_IS_CALM", str(calm))
    assert rescore(store, LENIENT) == summary
    again = rescore(store, LENIENT, retry_failed=True)
    assert again["num_without_verdict"] == 0
    assert again["digest"] != summary["digest"]
    assert store.parts("verdicts/new/failures") == []


def test_an_interrupted_attempt_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = run_of(tmp_path, PARTS)
    whole = rescore(store, LENIENT, name="whole")
    judge_part, judged = stage._judge_part, []

    def interrupted(store: RunStore, config: RunConfig, part: str, *rest: Any) -> None:
        if judged:
            raise KeyboardInterrupt
        judged.append(part)
        judge_part(store, config, part, *rest)

    monkeypatch.setattr(stage, "_judge_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rescore(store, LENIENT)
    assert not store.exists("verdicts/new/summary.json")
    monkeypatch.setattr(stage, "_judge_part", judge_part)
    kept = store.fs.modified(store.path("verdicts/new/part-000000.parquet"))
    assert rescore(store, LENIENT) == {**whole, "name": "new"}
    assert store.fs.modified(store.path("verdicts/new/part-000000.parquet")) == kept
    store.remove("rollouts/part-000001.parquet")
    assert rescore(store, LENIENT)["num_parts"] == 1
    assert store.parts("verdicts/new") == ["verdicts/new/part-000000.parquet"]


def test_what_is_refused(tmp_path: Path) -> None:
    store = run_of(tmp_path, [])
    with pytest.raises(StageError, match="no rollouts"):
        rescore(store, LENIENT)
    store = run_of(tmp_path, PARTS)
    rescore(store, LENIENT)
    with pytest.raises(ConfigError, match="those of the grader"):
        rescore(store, "numeric")
    with pytest.raises(ConfigError, match="becomes a folder"):
        rescore(store, "numeric", name="../up")
    bad = [dataclasses.replace(PARTS[0][0], gold=None), *PARTS[0][1:]]  # type: ignore[arg-type]
    store.write_table("rollouts/part-000000.parquet", trajectory_table(bad))
    with pytest.raises(DataError, match=r"part-000000.parquet, row 0: column 'gold' is None"):
        rescore(store, LENIENT)


def test_names_of_tables() -> None:
    assert default_name("math") == "math"
    assert default_name(LENIENT) == "lenient"
    names = {default_name(f'{{"name": "numeric", "rel_tol": {tol}}}') for tol in (0.1, 0.2)}
    assert len(names) == 2
    assert all(name.startswith("numeric-") for name in names)


def test_the_command_shows_flips_and_names_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = run_of(tmp_path, PARTS)
    assert main(["rescore", store.url, "--grader", "{name: numeric, rel_tol: 1.0}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "verdicts flipped" in said
    assert "effective sample size" in said
    (name,) = [Path(each).name for each in store.fs.ls(store.path("verdicts"), detail=False)]
    assert name.startswith("numeric-")
    assert f"weighting.verdicts={name}" in said
    for arguments, expected in (
        (["--grader", "mathh"], "Did you mean 'math'?"),
        (["--grader", "numeric", "weighting.beta=-1"], "weighting.beta"),
        (["--grader", "numeric", "--name", name], "Choose another --name"),
    ):
        assert main(["rescore", store.url, *arguments]) == 2
        assert expected in capsys.readouterr().err


def test_weights_follow_from_the_verdicts_that_they_go_by(tmp_path: Path) -> None:
    store = run_of(tmp_path, PARTS)
    recorded = run_config(tmp_path)
    chosen = load_prompts(recorded.task.train, task="addition", seed=0)
    by_new = run_config(tmp_path, "weighting.verdicts=new")
    with pytest.raises(StageError, match=r"weighting\.verdicts is 'new'"):
        trace(by_new, chosen, chosen)
    digests = {trace(recorded, chosen, chosen).weights}
    for grader in ("numeric", LENIENT):
        store.remove("verdicts/new")
        rescore(store, grader)
        digests.add(trace(by_new, chosen, chosen).weights)
    assert len(digests) == 3
    assert trace(by_new, chosen, chosen).rollouts == trace(recorded, chosen, chosen).rollouts
