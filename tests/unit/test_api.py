"""``import drift_ray``: the stages as functions, and trajectories as Arrow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

import drift_ray
from drift_ray import api
from drift_ray.config import RunConfig
from drift_ray.errors import ConfigError, StageError
from drift_ray.evaluation.results import metrics_name
from drift_ray.pipeline import Stage
from drift_ray.report.trajectories import WEIGHED_SCHEMA
from drift_ray.store import RunStore
from tests.unit.report_cases import finished_run, group
from tests.unit.scripted import run_config, write_config

NAMES = ["evaluate", "load_trajectories", "rollout", "train", "weigh"]


class Recorder:
    """In place of the pipeline: notes what it was asked for."""

    asked: ClassVar[list[tuple[RunConfig, set[Stage]]]] = []

    def __init__(self, config: RunConfig) -> None:
        self.config, self.store = config, RunStore(config.run)

    def run(self, stages: set[Stage]) -> None:
        self.asked.append((self.config, stages))

    def metrics(self) -> dict[str, object]:
        return {"addition": {}}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunConfig, set[Stage]]]:
    monkeypatch.setattr(api, "Pipeline", Recorder)
    Recorder.asked = []
    return Recorder.asked


def test_the_functions_are_there_whatever_was_imported_before() -> None:
    # In a process of its own: importing is what is tested, every time anew.
    code = (
        "import importlib, sys\n"
        "for first in ('drift_ray', 'drift_ray.rollout.work', 'drift_ray.api'):\n"
        "    for name in [each for each in sys.modules if each.split('.')[0] == 'drift_ray']:\n"
        "        del sys.modules[name]\n"
        "    importlib.import_module(first)\n"
        "    import drift_ray, drift_ray.rollout.protocol as protocol\n"
        f"    assert all(callable(getattr(drift_ray, name)) for name in {NAMES})\n"
        f"    assert set({NAMES}) <= set(dir(drift_ray)) and protocol.Request\n"
        "    from drift_ray import rollout, weigh\n"
        "    try: rollout('nowhere.yaml')\n"
        "    except drift_ray.errors.ConfigError as error: print(first, error.message)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = "No configuration file at nowhere.yaml."
    assert result.stdout.splitlines() == [
        f"drift_ray {said}",
        f"drift_ray.rollout.work {said}",
        f"drift_ray.api {said}",
    ], result.stderr


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'rollouts'"):
        _ = drift_ray.rollouts


def test_configurations_come_in_four_forms(
    tmp_path: Path, asked: list[tuple[RunConfig, set[Stage]]]
) -> None:
    config = run_config(tmp_path)
    path = write_config(tmp_path)
    raw = config.model_dump(mode="json")
    for form in (config, raw, path, str(path)):
        assert api.rollout(form, "seed=7") == config.run
    finished_run(tmp_path, [group("a")])
    assert api.rollout(config.run, "seed=7") == config.run  # the settings recorded there
    assert {each.seed for each, _ in asked} == {7}
    assert raw["seed"] == 0
    assert all(stages == {Stage.ROLLOUT} for _, stages in asked)
    with pytest.raises(ConfigError, match="sed"):
        api.rollout(config, "sed=7")


def test_every_function_runs_its_stage_and_gives_what_it_made(
    tmp_path: Path, asked: list[tuple[RunConfig, set[Stage]]]
) -> None:
    config = run_config(tmp_path)
    store = RunStore(config.run)
    store.write_json("weights/drift/summary.json", {"digest": "w"})
    store.write_json("model/drift_ray.json", {"digest": "m"})
    assert api.weigh(config) == {"digest": "w"}
    assert api.train(config) == {"digest": "m"}
    assert api.evaluate(config) == {"addition": {}}
    assert [stages for _, stages in asked] == [{Stage.WEIGH}, {Stage.TRAIN}, {Stage.EVALUATE}]


def test_trajectories_are_loaded_as_arrow(tmp_path: Path) -> None:
    store = finished_run(tmp_path, [group("a"), group("b")])
    table = drift_ray.load_trajectories(store.url)
    assert (table.num_rows, table.column_names) == (8, WEIGHED_SCHEMA.names)
    few = drift_ray.load_trajectories(Path(store.url), columns=["importance_weight"])
    assert few["importance_weight"].null_count == 0
    trained = drift_ray.load_trajectories(store.url, "addition/trained")
    assert trained["first_success_turn"].to_pylist() == [1, 1]
    assert trained["importance_weight"].null_count == 2
    store.remove(metrics_name("evaluation/trained"))
    with pytest.raises(StageError, match=r"'addition/trained'.*\n.*rollouts, addition/reference"):
        drift_ray.load_trajectories(store.url, "addition/trained")
