"""``ray up``, the image and Slurm: what can be checked of their files without a cloud."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from drift_ray.config_file import load_config
from tests.unit.manifests import CLUSTER, KUBERAY, ROOT

CLOUDS = ["aws", "gcp"]
DOCKERFILE = CLUSTER / "Dockerfile"
SBATCH = CLUSTER / "slurm" / "drift_ray.sbatch"


def ray_up(cloud: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((CLUSTER / "ray_up" / f"{cloud}.yaml").read_text())
    return config


def ray_schema() -> Any:
    ray = importlib.util.find_spec("ray")
    assert ray
    assert ray.submodule_search_locations
    path = Path(ray.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json"
    return json.loads(path.read_text())


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_cluster_is_what_ray_up_knows(cloud: str) -> None:
    config = ray_up(cloud)
    jsonschema.validate(config, ray_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "max_worker": 1}, ray_schema())
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert config["max_workers"] == sum(each.get("max_workers", 0) for each in types.values())


@pytest.mark.parametrize("cloud", CLOUDS)
def test_node_types_offer_what_a_run_asks_for(cloud: str) -> None:
    config = load_config(KUBERAY / "gpu-job" / "run.yaml", [])
    types = ray_up(cloud)["available_node_types"]
    assert set(types) == {"head", "rollout", "trainer"}
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    for name, section, num in (
        ("rollout", config.replicas, config.replicas.num_replicas.max),
        ("trainer", config.training, config.training.num_workers.max),
    ):
        offered, node = types[name]["resources"], types[name]
        assert section.label_selector.items() <= node["labels"].items()
        # The custom resource serves autoscalers that know no labels: one of it a replica or worker.
        a_node = min(offered["GPU"] // section.num_gpus, offered["CPU"] // section.num_cpus)
        assert offered[name] == a_node
        assert a_node * node["max_workers"] >= num
        assert node["min_workers"] == 0


def test_spot_nodes_are_for_replicas_alone() -> None:
    aws, gcp = (ray_up(cloud)["available_node_types"] for cloud in CLOUDS)
    spot = {"MarketType": "spot"}
    assert aws["rollout"]["node_config"]["InstanceMarketOptions"] == spot
    assert {"provisioningModel": "SPOT"} in gcp["rollout"]["node_config"]["scheduling"]
    assert "spot" not in f"{aws['trainer']}{aws['head']}{gcp['trainer']}{gcp['head']}".lower()


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_the_image_holds_what_the_lock_names(target: str) -> None:
    stages = _stages()
    stage = stages[target]
    packages = stages[f"{target}-packages"]
    assert f"COPY requirements-{target}.txt ./" in packages
    assert any(f"--requirement requirements-{target}.txt" in line for line in packages)
    users = [line for line in stage if line.startswith("USER ")]
    assert users == ["USER 1000:1000"]
    assert stage.index(users[0]) > max(i for i, line in enumerate(stage) if line.startswith("RUN"))


def test_the_image_is_of_this_checkout_and_holds_nothing_else_of_it() -> None:
    sources = {
        source
        for stage in _stages().values()
        for line in stage
        if line.startswith("COPY ")
        for source in shlex.split(line)[1:-1]
    }
    assert all((ROOT / source).exists() for source in sources)
    lines = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in lines
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == sources
    # What the build of the wheel reads has to be there.
    assert {"pyproject.toml", "README.md", "LICENSE", "drift_ray"} <= sources


def _stages() -> dict[str, list[str]]:
    """The instructions of every stage by its name, each on one line."""
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text())
    stages: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"FROM \S+ AS (\S+)", line):
            stages[match[1]] = []
        elif line and not line.startswith("#") and stages:
            stages[list(stages)[-1]].append(line)
    return stages


def test_the_slurm_script_is_sound() -> None:
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert shellcheck, "shellcheck is a part of the extra dev"
    result = subprocess.run([shellcheck, str(SBATCH)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_options_of_slurm_come_before_commands() -> None:
    """Slurm reads them up to the first command."""
    lines = SBATCH.read_text().splitlines()
    options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert options
    assert max(options) < first_command
