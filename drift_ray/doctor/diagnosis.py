"""All checks, one after the other: what stops one does not stop the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from drift_ray.config import RunConfig
from drift_ray.doctor.devices import check_memory
from drift_ray.doctor.findings import Finding, Level, error
from drift_ray.doctor.head import check_jobs, check_ray
from drift_ray.doctor.model import check_context, check_tokenizer
from drift_ray.doctor.packages import check_engine, check_packages, check_python
from drift_ray.doctor.storage import check_storage
from drift_ray.doctor.task import check_environment, check_rows
from drift_ray.errors import DriftRayError

Check = Callable[[RunConfig], Iterable[Finding]]

CHECKS: Mapping[str, Check] = {
    "python": check_python,
    "packages": check_packages,
    "engine": check_engine,
    "storage": check_storage,
    "ray": check_ray,
    "jobs": check_jobs,
    "memory": check_memory,
    "context window": check_context,
    "tokenizer": check_tokenizer,
    "environment": check_environment,
    "dataset": check_rows,
}
"""By the name that a finding has if the check itself is stopped by an error."""


def diagnose(config: RunConfig, checks: Mapping[str, Check] = CHECKS) -> Iterator[Finding]:
    """Findings as they come; an error of this package is a finding, too."""
    for name, check in checks.items():
        try:
            yield from check(config)
        except DriftRayError as reason:
            yield error(name, reason.message, reason.hint)


def is_healthy(findings: Iterable[Finding]) -> bool:
    """Whether no finding is an error."""
    return all(finding.level is not Level.ERROR for finding in findings)
