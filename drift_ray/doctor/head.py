"""The Ray head that the environment names, if it names one."""

from __future__ import annotations

import os
from collections.abc import Iterator

from drift_ray.cluster import prepare_ray, ray_cluster
from drift_ray.config import RunConfig
from drift_ray.doctor.findings import Finding, ok, warning
from drift_ray.joining import check_job_server

_CHECK = "ray"


def check_ray(config: RunConfig) -> Iterator[Finding]:
    """Join the cluster with its authentication, and see what it has.

    Raises:
        ClusterError: The cluster refuses.
    """
    if not os.environ.get("RAY_ADDRESS"):
        yield ok(_CHECK, "RAY_ADDRESS is not set: a run starts a private Ray on this machine")
        return
    prepare_ray()
    with ray_cluster(config):
        import ray

        yield from resource_findings(config, ray.cluster_resources())


def check_jobs(config: RunConfig) -> Iterator[Finding]:
    """See whether jobs can be submitted to the head that ``RAY_API_SERVER_ADDRESS`` names.

    Raises:
        ClusterError: They cannot.
    """
    if url := os.environ.get("RAY_API_SERVER_ADDRESS"):
        check_job_server(url)
        yield ok("jobs", f"can be submitted to {url}")


def resource_findings(config: RunConfig, total: dict[str, float]) -> Iterator[Finding]:
    """Whether a cluster with these resources has room for the least that the settings need."""
    shown = ", ".join(f"{total.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
    yield ok(_CHECK, f"joined {os.environ.get('RAY_ADDRESS')}: {shown}")
    for setting, section, num in (
        ("replicas", config.replicas, config.replicas.num_replicas.min),
        ("training", config.training, config.training.num_workers.min),
    ):
        each = {"CPU": section.num_cpus, "GPU": section.num_gpus, **section.resources}
        for name, amount in each.items():
            if amount * num > total.get(name, 0):
                yield warning(
                    _CHECK,
                    f"{setting} need {num} x {amount:g} {name}, the cluster has "
                    f"{total.get(name, 0):g} now.",
                    "All is well if it grows on demand; else lower the setting or add nodes.",
                )
