"""The table of metrics, who writes them, and who reads them; Ray is not started."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import ray.util.metrics
import yaml

from drift_ray.errors import StageError
from drift_ray.metrics import METRICS, Exporter
from drift_ray.rollout.fleet import ReplicaState
from drift_ray.rollout.metrics import StageMetrics
from drift_ray.rollout.work import Counts
from drift_ray.training.loop import StepMetrics
from drift_ray.training.metrics import StepExporter
from drift_ray.weighting.metrics import weights_metrics
from tests.unit.manifests import CLUSTER

EXPORTED = {metric.exported_name: metric for metric in METRICS.values()}
DASHBOARD = CLUSTER / "grafana" / "drift_ray.json"
ALERTS = CLUSTER / "prometheus" / "alerts.yml"
NAME = re.compile(r"ray_drift_ray_\w+")


class Ray:
    """In the place of ``ray.util.metrics``: keeps what was written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        monkeypatch.setattr(ray.util.metrics, "Counter", lambda *args: Written(self, *args))
        monkeypatch.setattr(ray.util.metrics, "Gauge", lambda *args: Written(self, *args))

    def of(self, name: str, **tags: str) -> float | None:
        found = [
            v for (n, t), v in self.values.items() if n == name and tags.items() <= dict(t).items()
        ]
        return sum(found) if found else None

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.values}


class Written:
    """A counter or a gauge."""

    def __init__(self, ray: Ray, name: str, description: str, tags: tuple[str, ...]) -> None:
        assert name.startswith("drift_ray_")
        assert description.isascii()  # or Ray fails
        self._values, self._name, self._tags = ray.values, name.removeprefix("drift_ray_"), tags

    def _key(self, tags: dict[str, str]) -> Any:
        assert set(tags) == set(self._tags)
        assert all(isinstance(value, str) for value in tags.values())
        return self._name, frozenset(tags.items())

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0
        key = self._key(tags)
        self._values[key] = self._values.get(key, 0) + value

    def set(self, value: float, tags: dict[str, str]) -> None:
        self._values[self._key(tags)] = value


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Ray:
    return Ray(monkeypatch)


class Member:
    def __init__(self, replica_id: int, num_in_flight: int) -> None:
        self.replica_id, self.num_in_flight = replica_id, num_in_flight


class Members:
    num_wanted = 3

    def __init__(self, *members: Member, num_lost: int = 0) -> None:
        self._members, self.num_lost = members, num_lost

    def __iter__(self) -> Any:
        return iter(self._members)

    def in_state(self, state: ReplicaState) -> list[Member]:
        return list(self._members) if state is ReplicaState.UP else []


def sampled(metrics: StageMetrics, num: int, fleet: Members, *, left: int, running: bool) -> None:
    counts = Counts(num_trajectories=num, num_failures=1, num_solved=1, num_sampled_tokens=9 * num)
    metrics.set(counts, fleet, groups_left=left, running=running)  # type: ignore[arg-type]


def step(number: int) -> StepMetrics:
    values: dict[str, Any] = {each.name: 0.5 for each in fields(StepMetrics)}
    return StepMetrics(**values | {"step": number, "num_steps": 9, "num_tokens": 100})


def test_a_replacement_has_the_number_of_the_replaced(written: Ray) -> None:
    metrics = StageMetrics("run", "rollout", num_lost=0)
    for number in range(1, 50, 2):
        pair = Members(Member(number, number), Member(number + 1, 100))
        sampled(metrics, number, pair, left=8, running=True)
        assert written.of("trajectories_in_flight", replica="0") == number
        assert written.of("trajectories_in_flight", replica="1") == 100
    assert written.of("trajectories_in_flight") == number + 100


def test_a_sampling_stage_is_seen(written: Ray) -> None:
    metrics = StageMetrics("s3://bucket/run", "rollout", num_lost=2)
    sampled(metrics, 4, Members(Member(1, 5), Member(2, 6), num_lost=2), left=8, running=True)
    assert written.of("replicas_lost") is None  # before this stage
    assert written.of("trajectories_in_flight") == 11
    sampled(metrics, 10, Members(Member(2, 7), num_lost=3), left=2, running=False)
    assert written.of("trajectories", run="s3://bucket/run", stage="rollout") == 10
    assert written.of("sampled_tokens") == 90
    assert written.of("failed_trajectories") == written.of("replicas_lost") == 1
    assert written.of("trajectories_in_flight", replica="0") == 0
    assert written.of("trajectories_in_flight", replica="1") == 7
    assert written.of("replicas", state="up") == 1
    assert written.of("replicas", state="pending") == 0
    assert written.of("running") == 0


def test_progress_is_what_finishes_groups(written: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100, 200))
    monkeypatch.setattr("drift_ray.rollout.metrics.time.time", lambda: next(now))
    metrics = StageMetrics("run", "rollout", num_lost=0)
    seen = []
    for left in (8, 8, 8, 7, 7):
        sampled(metrics, 1, Members(), left=left, running=True)
        seen.append(written.of("last_progress_s"))
    assert seen == [100, 100, 100, 101, 101]


def test_a_training_is_seen(written: Ray) -> None:
    with StepExporter("run") as exporter:
        assert written.of("running", stage="train") == 1
        for number in range(3):
            exporter(step(number))
    assert written.of("running") == 0
    assert written.of("training_step") == 3
    assert written.of("training_steps_planned") == 9
    assert written.of("training_tokens") == 300


def test_what_is_not_known_is_left_out(written: Ray) -> None:
    Exporter(run="run", stage="train").set("training_mfu", None)
    assert not written.names


SUMMARY = {"ess_frac": {"mean": 0.4}, "all_failed_frac": 0.1}


def test_a_refused_gate_is_seen(written: Ray) -> None:
    with weights_metrics("run", SUMMARY):
        pass
    assert written.of("ess_frac") == 0.4
    assert written.of("gates_refused") is None
    with pytest.raises(StageError, match="no"), weights_metrics("run", SUMMARY):
        raise StageError("no")
    assert written.of("gates_refused", stage="weigh") == 1


def test_every_metric_of_the_table_is_written(written: Ray) -> None:
    metrics = StageMetrics("run", "rollout", num_lost=0)
    sampled(metrics, 4, Members(Member(1, 5), num_lost=1), left=8, running=True)
    with StepExporter("run") as exporter:
        exporter(step(0))
    with pytest.raises(StageError), weights_metrics("run", SUMMARY):
        raise StageError("no")
    assert written.names == set(METRICS)


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    targets = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return targets + [rule["expr"] for group in groups for rule in group["rules"]]


def test_dashboard_and_alerts_read_what_is_written() -> None:
    named = {name for expression in expressions() for name in NAME.findall(expression)}
    assert named <= set(EXPORTED)
    for text in (DASHBOARD.read_text(), ALERTS.read_text()):
        assert set(NAME.findall(text)) <= set(EXPORTED)
    shown = set(NAME.findall(DASHBOARD.read_text()))
    assert shown == set(EXPORTED), "each has its place on the dashboard"


def test_expressions_group_by_tags_that_are_there() -> None:
    for expression in expressions():
        tags = {"run", "stage"}.union(*(EXPORTED[name].tags for name in NAME.findall(expression)))
        for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
            assert {tag.strip() for tag in group.split(",")} <= tags, expression
        assert expression.count("(") == expression.count(")")


def test_counters_are_read_as_counters_and_gauges_as_gauges() -> None:
    for expression in expressions():
        for name in re.findall(r"\b(?:rate|increase)\((ray_drift_ray_\w+)", expression):
            assert EXPORTED[name].kind == "counter", expression


def test_alerts_say_what_to_do() -> None:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    rules = {rule["alert"]: rule for rule in group["rules"]}
    assert {"DriftRayNoProgress", "DriftRayFailureShare", "DriftRayGateRefused"} <= set(rules)
    for rule in rules.values():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_panels_have_places_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken
        taken |= cells


def test_the_scrape_configuration_reads_the_alerts() -> None:
    config = yaml.safe_load((CLUSTER / "prometheus" / "prometheus.yml").read_text())
    assert [str(Path(name)) for name in config["rule_files"]] == [ALERTS.name]
    (job,) = config["scrape_configs"]
    assert job["file_sd_configs"][0]["files"][0].endswith("prom_metrics_service_discovery.json")


def test_the_readme_names_every_metric_with_its_unit() -> None:
    rows = re.findall(r"^\| `(ray_drift_ray_\w+)` \|(.*)\|$", readme(), re.MULTILINE)
    documented = {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}
    assert documented == {
        name: [each.kind, each.unit, each.text, ", ".join(("run", "stage", *each.tags))]
        for name, each in EXPORTED.items()
    }


def readme() -> str:
    return (CLUSTER / "README.md").read_text()
