"""What Ray Data's tasks do for the weighting stage: batches in, batches out, one row a part.

A part's tables travel as one Arrow stream in one cell, so no block boundary falls within a part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from drift_ray.config import WeightingConfig
from drift_ray.errors import DataError
from drift_ray.schema import RECIPE_KEY, SOURCE_KEY, WEIGHT_SCHEMA
from drift_ray.store import RunStore
from drift_ray.weighting.part import (
    content_of,
    is_committed,
    read_columns,
    return_table,
    weight_name,
    weight_table,
)
from drift_ray.weighting.split import Settled, weigh_rest
from drift_ray.weighting.verdicts import (
    for_all_rows,
    read_verdicts,
    verdict_name,
    with_verdicts,
)

if TYPE_CHECKING:
    from ray import ObjectRef

_RETURNS_SCHEMA = pa.schema(
    [
        ("part", pa.string()),
        ("key", pa.int32()),
        ("source", pa.binary()),
        ("returns", pa.large_binary()),
    ]
)
_OUTCOME_SCHEMA = pa.schema(
    [("job", pa.int32()), ("groups", pa.large_binary()), ("turns", pa.large_binary())]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One weighting of all parts."""

    number: int
    config: WeightingConfig
    key: int
    """Number of the returns it goes by: see :func:`read_batch`."""
    run_beta: float | None
    """β, where it had to be solved for the whole run."""
    settled: ObjectRef | None
    """``dict[str, Settled]`` by part; None: no group is spread over parts."""
    digest: str | None
    """Names the weights that are to be committed; None: only measure."""


def read_batch(batch: pa.Table, *, run_url: str, configs: Sequence[WeightingConfig]) -> pa.Table:
    """Read parts and compute their returns, once for each configuration.

    Args:
        batch: Column ``part``.
        run_url: The run directory.
        configs: Of which only what returns depend on matters. Their numbers are the ``key``.

    Returns:
        Columns ``part``, ``key``, ``source`` (content of the part) and ``returns`` (a packed
        :func:`drift_ray.weighting.part.return_table`).

    Raises:
        DataError: See :func:`drift_ray.weighting.part.read_columns`.
        StageError: A part has no verdicts of the name ``weighting.verdicts``.
    """
    store = RunStore(run_url)
    rows = []
    for part in batch["part"].to_pylist():
        columns = read_columns(store, part)
        source = content_of(columns)
        for key, config in enumerate(configs):
            judged = columns
            if config.verdicts is not None:
                verdicts = read_verdicts(store, part, config.verdicts, source)
                where = store.path(verdict_name(part, config.verdicts))
                judged = with_verdicts(columns, verdicts, where)
            returns = pack(return_table(judged, config))
            rows.append({"part": part, "key": key, "source": source, "returns": returns})
    return pa.Table.from_pylist(rows, _RETURNS_SCHEMA)


def weigh_batch(batch: pa.Table, *, run_url: str, jobs: Sequence[Job]) -> pa.Table:
    """Weigh the parts of a batch of :func:`read_batch`, and commit what jobs say.

    Returns:
        A row a part and job: its number, and the packed statistics of the groups weighed here.
    """
    import ray

    store = RunStore(run_url)
    settled = {job.number: ray.get(job.settled) if job.settled else {} for job in jobs}
    rows = []
    for row in range(batch.num_rows):
        part, key, source = (batch[name][row].as_py() for name in ("part", "key", "source"))
        returns = unpack(batch["returns"][row])
        for job in jobs:
            if job.key == key:
                outcome = _weigh_part(store, part, source, returns, job, settled[job.number])
                rows.append({"job": job.number, **outcome})
    return pa.Table.from_pylist(rows, _OUTCOME_SCHEMA)


def weigh_alone(
    store: RunStore, part: str, config: WeightingConfig, *, digest: str
) -> dict[str, bytes]:
    """Weigh a part whose groups are whole, whatever other parts there will be, and commit that.

    Args:
        store: The run directory.
        part: Name of the rollout part.
        config: How to weigh; nothing that depends on the whole run.
        digest: Names the weights of the whole run.

    Returns:
        The packed statistics of its ``groups`` and ``turns``.

    Raises:
        DataError: See :func:`drift_ray.weighting.part.read_columns`.
    """
    columns = read_columns(store, part)
    returns = return_table(columns, config)
    return _weigh_part(store, part, content_of(columns), returns, _alone(config, digest), {})


def has_own_weights(
    store: RunStore, part: str, content: bytes, config: WeightingConfig, *, digest: str
) -> bool:
    """Whether what :func:`weigh_alone` would commit is there, of a part with this content."""
    metadata = {SOURCE_KEY: content, RECIPE_KEY: _recipe(_alone(config, digest), None)}
    return is_committed(store, weight_name(part, config), WEIGHT_SCHEMA, metadata)


def _alone(config: WeightingConfig, digest: str) -> Job:
    return Job(number=0, config=config, key=0, run_beta=None, settled=None, digest=digest)


def _weigh_part(
    store: RunStore,
    part: str,
    source: bytes,
    returns: pa.Table,
    job: Job,
    settled: Mapping[str, Settled],
) -> dict[str, bytes]:
    mine = settled.get(part)
    try:
        weight, weighed = weigh_rest(returns, mine, job.config, run_beta=job.run_beta)
    except DataError as error:
        raise DataError(f"{store.path(part)}: {error.message}", error.hint) from error
    if job.digest is not None:
        name = weight_name(part, job.config)
        metadata = {SOURCE_KEY: source, RECIPE_KEY: _recipe(job, mine)}
        if not is_committed(store, name, WEIGHT_SCHEMA, metadata):
            table = weight_table(returns, weight, metadata)
            if job.config.verdicts is not None:
                verdicts = read_verdicts(store, part, job.config.verdicts, source)
                table = for_all_rows(table, verdicts)
            store.write_table(name, table)
    return {"groups": pack(weighed.groups), "turns": pack(weighed.turns)}


def _recipe(job: Job, settled: Settled | None) -> bytes:
    """Hash of all that weights are made from, beside the content of their rollout part."""
    recipe = hashlib.blake2b(repr((job.digest, job.run_beta)).encode(), digest_size=16)
    if settled is not None:
        recipe.update(settled.importance_weight.tobytes())
    return recipe.hexdigest().encode()


def pack(table: pa.Table) -> bytes:
    """A table as one Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def unpack(packed: bytes | pa.LargeBinaryScalar) -> pa.Table:
    """The table of a stream or of a cell with one, zero-copy."""
    source = packed if isinstance(packed, bytes) else packed.as_buffer()
    return pa.ipc.open_stream(source).read_all()
