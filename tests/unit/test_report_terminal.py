"""``drift-ray inspect`` and ``report``: the same facts in a terminal, and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drift_ray.cli import main
from drift_ray.report.results import read_results
from drift_ray.report.search import Search, find, return_formula, weight_formula
from drift_ray.report.terminal import visible
from drift_ray.report.trajectories import Source, applied_format_penalty
from drift_ray.schema import trajectory_table
from drift_ray.store import RunStore
from tests.unit.report_cases import PART, claimed, finished_run, group, played


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    groups = [group("a"), group("b", question="why \x1b[31m?")]
    return finished_run(tmp_path_factory.mktemp("run"), groups)


def said(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["inspect", *args]) == 0
    return capsys.readouterr().out


def ids(store: RunStore, **search: object) -> list[tuple[str, int]]:
    source = Source.rollouts(store, "drift")
    return [
        (each.row["prompt_id"], each.row["trajectory_index"])
        for each in find(store, source, Search(**search))  # type: ignore[arg-type]
    ]


def test_a_run_without_samples_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing was sampled there yet" in said(capsys, claimed(tmp_path)[0].url)


def test_a_search_finds_what_fits(run: RunStore) -> None:
    assert len(ids(run)) == 8
    assert ids(run, text="WHY") == [("b", index) for index in range(4)]
    assert ids(run, solved=False) == [("a", 3), ("b", 3)]
    assert ids(run, text="a", solved=True) == [("a", index) for index in range(3)]
    assert ids(run, text="(") == []


def test_rounding_is_no_format_penalty() -> None:
    discounted, repetition = 0.9**2, 0.5 * (1 - 2 / 3)
    weighed = {"discounted_return": discounted, "repetition_penalty": repetition}
    assert abs((discounted - repetition) - discounted + repetition) > 0
    for given in (0.0, -0.25):
        row = {**weighed, "shaped_return": discounted + given - repetition}
        assert applied_format_penalty(row) == given
    assert applied_format_penalty({"shaped_return": None, "format_penalty": -1.0}) == -1.0


def test_formulas_lead_to_what_is_stored(run: RunStore) -> None:
    results = read_results(run.url)
    assert results.weights is not None
    source = Source.rollouts(run, "drift")
    for found in find(run, source, Search()):
        value = found.row["shaped_return"]
        left, right = return_formula(found.row, results.weights["parameters"]).rsplit(" = ", 1)
        assert float(right) == pytest.approx(value, abs=1e-3)
        assert eval(left.removeprefix("R = ").replace("^", "**").replace("·", "*")) == (
            pytest.approx(value, abs=1e-3)
        )
        line = weight_formula(found, results.weights)
        assert float(line.rsplit(" = ", 1)[1]) == pytest.approx(
            found.row["importance_weight"], rel=1e-3
        )
        assert "over 4 trajectories" in line


def test_inspect_shows_summary_and_trajectories(
    run: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, run.url, "--prompt", "a?")
    for line in ("solved within 3 turns", "effective trajectories", "failures in evaluation"):
        assert line in text
    assert text.count("expected answer 1") == 4
    assert "✗ wrong · answer 2 · reward 0 · 3 tokens, log-probability -0.75" in text
    assert "R = 0 + 0 - 0.5·(1 - 1/3) = -0.3333" in text
    assert text.rstrip().endswith("rollouts: 4 shown")


def test_inspect_shows_what_control_characters_a_model_wrote(
    run: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, run.url, "--prompt", "why", "--limit", "1")
    assert "why \\x1b[31m?" in text
    assert "\x1b" not in text
    assert visible("a\tb\nc\rd\x9b") == "a\tb\nc\\x0dd\\x9b"


def test_inspect_speaks_json(run: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    args = (run.url, "--json", "--outcome", "failed", "--source", "addition/reference")
    told = json.loads(said(capsys, *args))
    assert [each["prompt_id"] for each in told["trajectories"]] == ["a", "b"]
    assert told["weights"]["num_trajectories"] == 8
    assert told["failures"][0]["by_cause"] == {"grader": 1}
    rollouts = json.loads(said(capsys, run.url, "--json", "--limit", "1"))["trajectories"]
    assert rollouts[0]["return_formula"] == "R = 0.9^0·1 + 0 - 0.5·(1 - 1/1) = 1"


def test_inspect_names_the_sources_there_are(
    run: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", run.url, "--source", "trained"]) == 8
    assert "addition/trained" in capsys.readouterr().err


def test_inspect_works_on_a_run_that_has_only_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, _ = claimed(tmp_path)
    assert store.url in said(capsys, store.url)
    store.write_table(PART, trajectory_table([played("x", 0, ["1"])]))
    assert "rollouts: 1 shown" in said(capsys, store.url)


@pytest.mark.parametrize("command", ["inspect", "report"])
def test_what_is_no_run_is_named(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(tmp_path)]) == 2
    assert "no run" in capsys.readouterr().err
