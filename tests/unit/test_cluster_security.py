"""Every file that is shipped asks for a token, shows no dashboard, and has least privileges."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from drift_ray.config_file import load_config
from tests.unit.manifests import (
    CLUSTER,
    CLUSTER_OVERLAYS,
    JOB_OVERLAYS,
    ROOT,
    cluster_spec,
    container,
    of_kind,
    overlay,
    pods,
)

OVERLAYS = CLUSTER_OVERLAYS + JOB_OVERLAYS
FILES = [path for path in sorted(CLUSTER.rglob("*")) if path.is_file()]
CONFIGS = sorted([*CLUSTER.rglob("run.yaml"), *ROOT.glob("jobs/configs/*.yaml")])


@pytest.mark.parametrize("name", OVERLAYS)
def test_kuberay_asks_for_a_token_of_a_secret(name: str) -> None:
    assert cluster_spec(name)["authOptions"] == {"mode": "token", "secretName": "drift-ray-token"}
    assert "Secret" not in {each["kind"] for each in overlay(name)}


@pytest.mark.parametrize("name", OVERLAYS)
def test_kubernetes_shows_nothing_outside(name: str) -> None:
    head = cluster_spec(name)["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP"
    assert not head.get("enableIngress", False)
    assert {each["kind"] for each in overlay(name)}.isdisjoint({"Ingress", "Route", "HTTPRoute"})
    policy = of_kind(overlay(name), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert all(rule["from"] for rule in policy["ingress"])
    selected = policy["podSelector"]["matchLabels"].items()
    spec = cluster_spec(name)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert selected <= group["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("name", OVERLAYS)
def test_pods_have_least_privileges(name: str) -> None:
    spec = cluster_spec(name)
    contexts = [container(pod)["securityContext"] for pod in pods(spec).values()]
    for context in (*contexts, spec["autoscalerOptions"]["securityContext"]):
        assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for role, pod in pods(spec).items():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert all("hostPath" not in volume for volume in pod["volumes"])
        # The head's autoscaler makes pods by an account of the operator's; nobody else may.
        assert pod.get("automountServiceAccountToken", True) is (role == "head")
    account = of_kind(overlay(name), "ServiceAccount")
    assert account["automountServiceAccountToken"] is False


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_ray_up_asks_for_a_token_and_hides_the_dashboard(cloud: str) -> None:
    config: dict[str, Any] = yaml.safe_load((CLUSTER / "ray_up" / f"{cloud}.yaml").read_text())
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]  # of head and workers
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    (start,) = (each for each in config["head_start_ray_commands"] if "ray start" in each)
    assert "--dashboard-host=127.0.0.1" in start
    if cloud == "aws":  # a group that Ray makes by itself opens SSH to the world
        nodes = config["available_node_types"].values()
        assert all(node["node_config"]["SecurityGroupIds"] for node in nodes)


def test_slurm_asks_for_a_token_and_starts_no_dashboard() -> None:
    lines = (CLUSTER / "slurm" / "drift_ray.sbatch").read_text().splitlines()

    def first(text: str) -> int:
        return next(i for i, line in enumerate(lines) if text in line)

    assert first("umask 077") < first('>"$RAY_AUTH_TOKEN_PATH"') < first("ray start --head")
    assert first("export RAY_AUTH_MODE=token") < first("ray start --head")
    assert "--include-dashboard=false" in lines[first("ray start --head")]


@pytest.mark.parametrize("path", [*FILES, ROOT / "Makefile"], ids=lambda path: path.name)
def test_nothing_that_is_shipped_turns_tokens_off_or_holds_one(path: Path) -> None:
    text = path.read_text()
    modes = re.findall(r"RAY_AUTH_MODE\s*(?::?=)\s*(\w+)", text)
    assert set(modes) <= {"token"}
    assert not re.search(r"\b(?:[0-9a-f]{32,}|AKIA[0-9A-Z]{12,}|hf_\w{20,})\b", text)
    assert not re.search(r"dashboard-host[= ]\W?0\.0\.0\.0", text)
    assert not re.search(r"RAY_AUTH_TOKEN\s*[:=]\s*\"?[^\s\"$]", text)  # a value, not a command


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_configuration_that_is_shipped_runs_code_of_a_model(path: Path) -> None:
    assert load_config(path, []).model.trust_remote_code is False


def test_nothing_is_unpickled_from_storage() -> None:
    unpickles = re.compile(
        r"^\s*(?:import|from) (?:pickle|cloudpickle|dill|joblib|shelve)\b"
        r"|\btorch\.load\(|allow_pickle=True|\byaml\.(?:unsafe_)?load\(",
        re.MULTILINE,
    )
    sources = sorted((ROOT / "drift_ray").rglob("*.py"))
    found = {path.name for path in sources if unpickles.search(path.read_text())}
    assert found == {"grading_channel.py"}  # a pipe between a replica and its own processes
