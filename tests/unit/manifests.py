"""The files under ``cluster/`` as tests read them."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay"
CRDS = Path(os.environ.get("DRIFT_RAY_KUBERAY_CRDS", ROOT.parent / "shared/kuberay-crds"))
"""Schemas of KubeRay's resources; not a part of this repository."""
CLUSTER_OVERLAYS, JOB_OVERLAYS = ("gpu", "cpu"), ("gpu-job", "cpu-job")


def kustomize(folder: Path) -> list[dict[str, Any]]:
    """The resources that ``kubectl apply -k`` would apply. Skips where there is no kustomize."""
    if command := shutil.which("kustomize"):
        build = [command, "build", str(folder)]
    elif command := shutil.which("kubectl"):
        build = [command, "kustomize", str(folder)]
    else:
        pytest.skip("neither kustomize nor kubectl is installed: overlays are not built here")
    result = subprocess.run(build, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return list(yaml.safe_load_all(result.stdout))


@cache
def overlay(name: str) -> tuple[dict[str, Any], ...]:
    """The resources of an overlay that is shipped."""
    return tuple(kustomize(KUBERAY / name))


def of_kind(resources: tuple[dict[str, Any], ...] | list[dict[str, Any]], kind: str) -> Any:
    """The one resource of a kind."""
    (found,) = (each for each in resources if each["kind"] == kind)
    return found


def cluster_spec(name: str) -> dict[str, Any]:
    """The cluster that an overlay asks for, by itself or for its job."""
    if name in JOB_OVERLAYS:
        spec: dict[str, Any] = of_kind(overlay(name), "RayJob")["spec"]["rayClusterSpec"]
    else:
        spec = of_kind(overlay(name), "RayCluster")["spec"]
    return spec


def pods(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The pods of a cluster: of the head, and of each group by its name."""
    groups = {each["groupName"]: each["template"]["spec"] for each in spec["workerGroupSpecs"]}
    return {"head": spec["headGroupSpec"]["template"]["spec"], **groups}


def container(pod: dict[str, Any]) -> dict[str, Any]:
    """The only container of a pod."""
    (only,) = pod["containers"]
    return dict(only)


def environment(pod: dict[str, Any]) -> dict[str, str]:
    """Variables with their values."""
    return {each["name"]: each["value"] for each in container(pod)["env"]}
