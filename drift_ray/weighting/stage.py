"""The weighting stage: every rollout part gets its table of importance weights beside it.

A weight table is a few kilobytes beside its part, which makes reweighting cheap.
"""

from __future__ import annotations

from collections.abc import Mapping

from drift_ray import __version__
from drift_ray.config import RunConfig, WeightingConfig
from drift_ray.lineage import Lineage
from drift_ray.schema import (
    CONTENT_KEY,
    SCHEMA_VERSION,
    SOURCE_KEY,
    TRAJECTORY_SCHEMA,
    WEIGHT_SCHEMA,
)
from drift_ray.store import ROLLOUTS, WEIGHTS, RunStore
from drift_ray.weighting.advice import Summary, check_gate
from drift_ray.weighting.part import weight_name
from drift_ray.weighting.passes import (
    Outcome,
    prepare,
    read_returns,
    rollout_parts,
    weigh_parts,
)
from drift_ray.weighting.report import outcome_summary
from drift_ray.weighting.tasks import weigh_alone
from drift_ray.weighting.verdicts import verdict_summary_name
from drift_ray.weighting.weightings import get_weighting


def summary_name(config: WeightingConfig) -> str:
    """Name of the summary file, written last: it says that the stage is done, and for what."""
    return f"{WEIGHTS}/{config.name}/summary.json"


def is_done(store: RunStore, config: RunConfig, lineage: Lineage) -> bool:
    """Whether the weights of exactly these settings and rollouts are committed."""
    if not store.has_digest(summary_name(config.weighting), lineage.weights):
        return False
    weights = store.parts(f"{WEIGHTS}/{config.weighting.name}")
    sources = store.check_parts(weights, WEIGHT_SCHEMA)
    contents = store.check_parts(store.parts(ROLLOUTS), TRAJECTORY_SCHEMA)
    # A part that was sampled again since has other returns, whatever its name says.
    weighed = {_file(part): metadata.get(SOURCE_KEY) for part, metadata in sources.items()}
    return weighed == {_file(part): metadata[CONTENT_KEY] for part, metadata in contents.items()}


def run(store: RunStore, config: RunConfig, lineage: Lineage) -> Summary:
    """Weigh all committed rollout parts; returns the summary that is also committed.

    Nothing that was committed is touched before all rollouts are read and found in order. Weights
    that an interrupted attempt at the same has left are kept.

    Raises:
        StageError: There are no rollouts.
        DataError: A part is truncated, foreign or of a newer schema, or holds a value that is
            missing or not finite; names part, row and column.
    """
    parts = rollout_parts(store)
    weighting = config.weighting
    returns = read_returns(store, parts, [weighting])
    if get_weighting(weighting.method).own:
        # It may fail on any part: try it on all of them first.
        weigh_parts(store, returns, prepare(returns, [weighting]))
    prepared = prepare(returns, [weighting], commit_as=lineage.weights)
    # Readers must never see new weights under an old summary.
    store.remove(summary_name(weighting))
    (outcome,) = weigh_parts(store, returns, prepared)
    return _finish(
        store, config, lineage, outcome, returns.sources, num_split=len(returns.split_groups)
    )


def run_here(store: RunStore, config: RunConfig, lineage: Lineage) -> Summary:
    """The same in this process: quicker than starting Ray Data where rollouts are few.

    Groups must be whole within their parts, and nothing may depend on all of them.

    Raises:
        StageError: There are no rollouts.
        DataError: As :func:`run`.
    """
    parts = rollout_parts(store)
    weighting = config.weighting
    store.remove(summary_name(weighting))
    outcome = Outcome()
    for part in parts:
        weighed = weigh_alone(store, part, weighting, digest=lineage.weights)
        outcome.add(weighed["groups"], weighed["turns"])
    metadata = store.check_parts(parts, TRAJECTORY_SCHEMA)
    sources = {part: metadata[part][CONTENT_KEY] for part in parts}
    return _finish(store, config, lineage, outcome, sources, num_split=0)


def _finish(
    store: RunStore,
    config: RunConfig,
    lineage: Lineage,
    outcome: Outcome,
    sources: Mapping[str, bytes],
    *,
    num_split: int,
) -> Summary:
    """Remove weights of parts that are gone, and commit the summary."""
    weighting = config.weighting
    names = {weight_name(part, weighting) for part in sources}
    for orphan in {*store.parts(f"{WEIGHTS}/{weighting.name}")} - names:
        store.remove(orphan)
    figures = outcome_summary(outcome, weighting)
    summary = {
        "digest": lineage.weights,
        "rollouts": lineage.rollouts,
        "versions": {"drift_ray": __version__, "schema": SCHEMA_VERSION},
        "name": weighting.name,
        "parameters": figures.pop("parameters"),
        "num_parts": len(sources),
        "num_split_groups": num_split,
        **_verdict_figures(store, weighting),
        **figures,
        "parts": {_file(part): sources[part].decode() for part in sorted(sources)},
    }
    store.write_json(summary_name(weighting), summary)
    return summary


def check(store: RunStore, config: WeightingConfig) -> None:
    """Refuse to go on if the committed weights miss a condition of ``weighting.gate``.

    Raises:
        StageError: Names the figures and what to change.
    """
    name = summary_name(config)
    check_gate(store.read_json(name), config.gate, store.path(name))


def _verdict_figures(store: RunStore, config: WeightingConfig) -> Summary:
    """What was weighed by verdicts of another grader, and what these leave open."""
    if config.verdicts is None:
        return {}
    found = store.read_json(verdict_summary_name(config.verdicts))
    names = ("name", "grader", "digest", "num_without_verdict", "num_censored")
    return {"verdicts": {name: found[name] for name in names}}


def _file(part: str) -> str:
    return part.rsplit("/", 1)[1]
