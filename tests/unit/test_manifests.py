"""KubeRay's manifests: built as kubectl builds them, held against the CRDs and against a run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from drift_ray.config import ReplicaConfig, RunConfig, TrainingConfig
from drift_ray.config_file import load_config
from drift_ray.logs import LOG_FORMAT_VARIABLE
from tests.unit.manifests import (
    CLUSTER_OVERLAYS,
    CRDS,
    JOB_OVERLAYS,
    KUBERAY,
    ROOT,
    cluster_spec,
    container,
    environment,
    kustomize,
    of_kind,
    overlay,
    pods,
)

OVERLAYS = CLUSTER_OVERLAYS + JOB_OVERLAYS


@cache
def crd(kind: str) -> dict[str, Any]:
    path = CRDS / f"{kind.lower()}-v1.schema.json"
    if not path.exists():
        pytest.skip(f"KubeRay's schemas are not there: no {path} (DRIFT_RAY_KUBERAY_CRDS)")
    schema: dict[str, Any] = json.loads(path.read_text())
    _close(schema)
    jsonschema.Draft7Validator.check_schema(schema)
    return schema


def _close(schema: Any) -> None:
    """Refuse properties that a schema does not list."""
    if isinstance(schema, list):
        for each in schema:
            _close(each)
    elif isinstance(schema, dict):
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields", False)
        if isinstance(schema.get("properties"), dict) and not open_ended:
            schema.setdefault("additionalProperties", False)
        for each in schema.values():
            _close(each)


def problems(resource: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft7Validator(crd(resource["kind"]))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(resource)]


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_are_what_kuberay_knows(name: str) -> None:
    kind = "RayJob" if name in JOB_OVERLAYS else "RayCluster"
    resource = of_kind(overlay(name), kind)
    assert resource["apiVersion"] == "ray.io/v1"
    assert problems(resource) == []
    assert sum(each["apiVersion"] == "ray.io/v1" for each in overlay(name)) == 1


def test_what_kuberay_does_not_know_is_found() -> None:
    resource = deepcopy(of_kind(overlay("cpu"), "RayCluster"))
    resource["spec"]["workerGroupSpecs"][0]["maxReplica"] = 1
    resource["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] = 1
    resource["spec"]["authOptions"]["mode"] = "tokens"
    assert len(problems(resource)) == 3


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_version_is_the_one_of_the_image(name: str) -> None:
    assert cluster_spec(name)["rayVersion"] == importlib.metadata.version("ray")


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_cluster_scales_itself_and_its_head_does_no_work(name: str) -> None:
    spec = cluster_spec(name)
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {each["groupName"]: each for each in spec["workerGroupSpecs"]}
    assert set(groups) == {"rollout", "trainer"}
    assert all(each["minReplicas"] == each["replicas"] == 0 for each in groups.values())
    spot = {each["key"] for each in pods(spec)["rollout"]["tolerations"]}
    assert "cloud.google.com/gke-spot" in spot
    trainer = {each["key"] for each in pods(spec)["trainer"].get("tolerations", [])}
    assert trainer <= {"nvidia.com/gpu"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_pod_says_what_it_needs_and_when_it_is_well(name: str) -> None:
    for pod in pods(cluster_spec(name)).values():
        only = container(pod)
        requests, limits = only["resources"]["requests"], only["resources"]["limits"]
        assert {"cpu", "memory"} <= set(requests)
        assert limits["memory"] == requests["memory"]  # Ray reads the limit as what it may use
        for probe in ("readinessProbe", "livenessProbe"):
            assert only[probe]["httpGet"]["path"].endswith("healthz")


def test_the_paths_of_the_probes_ask_for_no_token() -> None:
    ray = importlib.util.find_spec("ray")
    assert ray
    assert ray.submodule_search_locations
    dashboard = Path(ray.submodule_search_locations[0]) / "dashboard"
    servers = {8265: "http_server_head.py", 52365: "http_server_agent.py"}
    for pod in pods(cluster_spec("gpu")).values():
        get = container(pod)["livenessProbe"]["httpGet"]
        assert f'"{get["path"]}"' in (dashboard / servers[get["port"]]).read_text()


@pytest.mark.parametrize("name", OVERLAYS)
def test_nodes_get_the_environment_that_a_run_needs(name: str, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location(
        "_private_head", ROOT / "jobs" / "_private_head.py"
    )
    assert spec
    assert spec.loader
    private_head = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(private_head)
    for role, pod in pods(cluster_spec(name)).items():
        variables = environment(pod)
        assert variables["RAY_worker_niceness"] == "0"
        if role == "head":  # a stopped job ends as it does on a private head
            wanted = private_head._ray_environment(tmp_path)
            stop = {key: value for key, value in wanted.items() if "JOB_STOP" in key}
            assert stop
            assert stop.items() <= variables.items()
            assert variables[LOG_FORMAT_VARIABLE] == "json"
        else:
            mounts = {each["mountPath"] for each in container(pod)["volumeMounts"]}
            assert variables["TMPDIR"] in mounts


def job_config(name: str) -> RunConfig:
    return load_config(KUBERAY / name / "run.yaml", [])


@pytest.mark.parametrize("name", JOB_OVERLAYS)
def test_the_job_runs_the_configuration_that_lies_beside(name: str) -> None:
    text = of_kind(overlay(name), "ConfigMap")["data"]["run.yaml"]
    assert text == (KUBERAY / name / "run.yaml").read_text()
    job = of_kind(overlay(name), "RayJob")["spec"]
    head = pods(job["rayClusterSpec"])["head"]
    (mount,) = container(head)["volumeMounts"]
    assert job["entrypoint"] == f"drift-ray run {mount['mountPath']}/run.yaml"
    assert head["volumes"][0]["configMap"]["name"] == "drift-ray-config"
    # Each retry is another cluster, and so is another job.
    assert job_config(name).run.startswith("s3://")
    assert job["shutdownAfterJobFinishes"] is True


def room(group: dict[str, Any], section: ReplicaConfig | TrainingConfig) -> int:
    """How many replicas or workers fit into a group, by what KubeRay tells Ray of its pods."""
    if not section.label_selector.items() <= group["labels"].items():
        return 0
    limits = container(group["template"]["spec"])["resources"]["limits"]
    fits = int(limits["cpu"]) // section.num_cpus
    if section.num_gpus:
        fits = min(fits, int(limits.get("nvidia.com/gpu", 0)) // section.num_gpus)
    return int(fits) * int(group["maxReplicas"])


@pytest.mark.parametrize("name", JOB_OVERLAYS)
def test_replicas_and_trainers_find_room_in_their_group_alone(name: str) -> None:
    config = job_config(name)
    rollout, trainer = cluster_spec(name)["workerGroupSpecs"]
    assert config.replicas.label_selector
    assert config.training.label_selector
    assert room(rollout, config.replicas) >= config.replicas.num_replicas.max
    assert room(trainer, config.training) >= config.training.num_workers.max
    assert room(trainer, config.replicas) == room(rollout, config.training) == 0


@pytest.mark.parametrize("name", JOB_OVERLAYS)
def test_weighing_finds_room_beside_the_replicas(name: str) -> None:
    """Ray Data's tasks of one CPU would wait forever on nodes that replicas fill."""
    config = job_config(name)
    rollout = cluster_spec(name)["workerGroupSpecs"][0]
    cpus = int(container(rollout["template"]["spec"])["resources"]["limits"]["cpu"])
    a_node = room({**rollout, "maxReplicas": 1}, config.replicas)
    if config.replicas.num_gpus:
        assert cpus - a_node * config.replicas.num_cpus >= 1


@pytest.mark.parametrize("name", OVERLAYS)
def test_kueue_is_an_option(tmp_path: Path, name: str) -> None:
    shutil.copytree(KUBERAY, tmp_path / "kuberay")
    own = tmp_path / "kuberay" / "own"
    own.mkdir()
    files = {"resources": [f"../{name}"], "components": ["../kueue"]}
    (own / "kustomization.yaml").write_text(yaml.safe_dump(files))
    (resource,) = (each for each in kustomize(own) if each["apiVersion"] == "ray.io/v1")
    assert problems(resource) == []
    assert resource["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "drift-ray"
    assert resource["metadata"]["annotations"] == {"kueue.x-k8s.io/elastic-job": "true"}
    (plain,) = (each for each in overlay(name) if each["apiVersion"] == "ray.io/v1")
    assert "kueue" not in json.dumps(plain)
