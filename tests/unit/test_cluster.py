"""Where replicas and trainers ask to be placed; Ray is not started."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from ray._private.label_utils import validate_label_selector, validate_node_label_syntax

from drift_ray.cluster import logical_cpus, one_node, placed_apart
from drift_ray.config import ReplicaConfig, RunConfig, TrainingConfig
from drift_ray.errors import StageError
from drift_ray.rollout import fleet
from drift_ray.rollout.engines import make_engine
from drift_ray.training import stage

PROMPTS = {"source": "addition"}
ON_ROLLOUT = {"drift-ray/rollout": "enabled"}
ON_TRAINING = {"drift-ray/training": "enabled"}


def config(
    replicas: dict[str, Any] | None = None, training: dict[str, Any] | None = None
) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": "unused",
            "model": {"path": "unused"},
            "task": {"name": "t", "train": PROMPTS, "test": {**PROMPTS, "split": "test"}},
            "replicas": replicas or {},
            "training": training or {},
        }
    )


def test_one_node_is_every_node_that_is_asked_for() -> None:
    plain = config()
    assert one_node(plain) == {"num_cpus": logical_cpus(plain), "resources": {}, "labels": {}}
    told = one_node(
        config(
            {"num_replicas": 3, "resources": {"rollout": 2}, "label_selector": ON_ROLLOUT},
            {
                "num_workers": {"min": 1, "max": 2},
                "resources": {"rollout": 1, "trainer": 0.5},
                "label_selector": {
                    **ON_TRAINING,
                    "drift-ray/rollout": "enabled",
                    "ray.io/accelerator-type": "H100",
                    "zone": "in(a, b)",
                    "spot": "!yes",
                },
            },
        )
    )
    assert told["resources"] == {"rollout": 8.0, "trainer": 1.0}
    assert told["labels"] == ON_ROLLOUT | ON_TRAINING | {"zone": "a"}
    validate_node_label_syntax(told["labels"])


def test_one_node_cannot_have_two_values_of_a_label() -> None:
    apart = config({"label_selector": {"group": "a"}}, {"label_selector": {"group": "b"}})
    with pytest.raises(StageError, match="group=a and one with group=b"):
        one_node(apart)
    either = config({"label_selector": {"group": "in(a, b)"}}, {"label_selector": {"group": "b"}})
    assert one_node(either)["labels"] == {"group": "b"}


@pytest.mark.parametrize(
    "selector", [ON_ROLLOUT, {"a.b/c": "!x"}, {"zone": "in(a, b,c)"}, {"zone": "!in(a)"}]
)
def test_a_selector_is_one_of_rays(selector: dict[str, str]) -> None:
    assert ReplicaConfig(label_selector=selector).label_selector == selector
    assert validate_label_selector(selector) is None


@pytest.mark.parametrize(
    ("replicas", "training", "apart"),
    [
        ({}, {}, False),
        ({"label_selector": ON_ROLLOUT}, {}, False),
        ({"label_selector": ON_ROLLOUT}, {"label_selector": ON_ROLLOUT}, False),
        ({"label_selector": ON_ROLLOUT}, {"label_selector": ON_TRAINING}, True),
        ({"resources": {"rollout": 1}}, {"resources": {"trainer": 1}}, True),
        ({"resources": {"rollout": 1}}, {"label_selector": ON_TRAINING}, True),
    ],
)
def test_apart_is_what_shares_no_wish(
    monkeypatch: pytest.MonkeyPatch,
    replicas: dict[str, Any],
    training: dict[str, Any],
    apart: bool,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert placed_apart(config(replicas, training)) is apart
    monkeypatch.delenv("RAY_ADDRESS")
    assert not placed_apart(config(replicas, training))


class Actors:
    """In the place of ``ray.remote``: remembers what an actor asks for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wishes: dict[str, Any] = {}
        self.group: dict[str, Any] | None = None
        monkeypatch.setattr(ray, "remote", lambda _: self)
        monkeypatch.setattr(fleet, "placement_group", self._placement_group)
        monkeypatch.setattr(fleet, "warn_if_too_large", lambda *_: None)

    def _placement_group(self, bundles: list[dict[str, float]], **settings: Any) -> str:
        self.group = {"bundles": bundles, **settings}
        return "group"

    def __getattr__(self, name: str) -> Any:
        def call(*_: object, **options: Any) -> Actors:
            self.wishes.update(options)
            return self

        return self if name == "place" else call


def asked(monkeypatch: pytest.MonkeyPatch, **replicas: Any) -> Actors:
    actors = Actors(monkeypatch)
    wanted = config({"num_replicas": 1, **replicas})
    fleet.Fleet("url", wanted.model, wanted.replicas, make_engine).fill()
    return actors


def test_a_replica_asks_for_the_nodes_of_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    actors = asked(monkeypatch, num_gpus=1, resources={"rollout": 1.0}, label_selector=ON_ROLLOUT)
    assert actors.group is None
    assert actors.wishes["num_gpus"] == 1
    assert actors.wishes["resources"] == {"rollout": 1.0}
    assert actors.wishes["label_selector"] == ON_ROLLOUT


@pytest.mark.parametrize("labels", [{}, ON_ROLLOUT])
def test_an_engine_over_several_devices_has_a_placement_group(
    monkeypatch: pytest.MonkeyPatch, labels: dict[str, str]
) -> None:
    actors = asked(
        monkeypatch,
        num_cpus=4,
        num_gpus=2,
        resources={"rollout": 1.0},
        label_selector=labels,
        engine={"arguments": {"tensor_parallel_size": 2}},
    )
    assert actors.group is not None
    assert actors.group.pop("name").startswith("drift_ray-replica-")  # nameless is Ray Train's
    assert actors.group == {
        "bundles": [{"CPU": 4.0, "GPU": 1.0, "rollout": 1.0}, {"GPU": 1.0}],
        "strategy": "PACK",
        "bundle_label_selector": [labels, labels] if labels else None,
    }
    assert actors.wishes["scheduling_strategy"].placement_group == "group"
    assert "num_gpus" not in actors.wishes


def test_a_trainer_asks_for_the_nodes_of_its_group() -> None:
    training = TrainingConfig(num_gpus=1, resources={"trainer": 1.0}, label_selector=ON_TRAINING)
    assert stage._resources(training) == {"CPU": 1.0, "GPU": 1.0, "trainer": 1.0}
    scaling = stage._scaling(training)
    assert scaling._resources_per_worker_not_none == {"CPU": 1.0, "GPU": 1.0, "trainer": 1.0}
    assert scaling._label_selector_per_worker(2) == [ON_TRAINING] * 2
