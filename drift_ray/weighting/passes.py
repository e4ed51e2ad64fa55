"""Two passes of Ray Data over the rollout parts: first their returns, then their weights.

Pass 1 reads the few columns that matter and keeps, for every part, a table of some 70 bytes a
trajectory in Ray's object store: a part is read once, whatever is made of it. What must not happen
is found here, before anything is written. Pass 2 weighs.

Groups that are whole within their part never leave its task. Those spread over several parts are
weighed in the driver (see :mod:`drift_ray.weighting.split`) and handed to the tasks of their parts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from drift_ray.cluster import task_failure
from drift_ray.config import BetaTarget, WeightingConfig
from drift_ray.errors import StageError
from drift_ray.progress import StageProgress
from drift_ray.store import ROLLOUTS, RunStore
from drift_ray.weighting.split import Settled, find_split_groups, one_table, settle
from drift_ray.weighting.tasks import Job, read_batch, unpack, weigh_batch
from drift_ray.weighting.weigh import Weighed, needs_run_beta, rows_of, solve_run_beta
from drift_ray.weighting.weightings import get_weighting

if TYPE_CHECKING:
    from ray.data import Dataset, MaterializedDataset

# Enough work in a task to be worth starting one, and enough tasks to share among many CPUs.
_PARTS_PER_TASK = 8
_MIN_TASKS = 64


class _ReturnKey(NamedTuple):
    """What returns depend on: weightings that differ otherwise share them."""

    gamma: float
    repetition_penalty: float
    first_turn_only: bool
    verdicts: str | None

    @classmethod
    def of(cls, config: WeightingConfig) -> _ReturnKey:
        first_turn_only = get_weighting(config.method).first_turn_only
        return cls(config.gamma, config.repetition_penalty, first_turn_only, config.verdicts)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Returns:
    """What pass 1 found."""

    dataset: MaterializedDataset
    """See :func:`drift_ray.weighting.tasks.read_batch`."""
    keys: list[_ReturnKey]
    sources: dict[str, bytes]
    """Content of every part."""
    split_groups: pa.Array
    """Prompt ids of the groups that are spread over several parts."""

    def tables(self, key: int) -> list[tuple[str, pa.Table]]:
        """Every part's return table under one key, in order, zero-copy from the object store."""
        return sorted(_tables(self.dataset, key), key=lambda item: item[0])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prepared:
    """A weighting, ready for pass 2."""

    job: Job
    split_groups: Weighed | None
    """What the groups weighed beforehand amount to."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcome:
    """What pass 2 made of all groups under one weighting."""

    groups: list[pa.Table] = field(default_factory=list)
    """See :func:`drift_ray.weighting.diagnostics.group_statistics`."""
    turns: list[pa.Table] = field(default_factory=list)
    """See :func:`drift_ray.weighting.diagnostics.turn_masses`."""

    def add(
        self, groups: bytes | pa.LargeBinaryScalar, turns: bytes | pa.LargeBinaryScalar
    ) -> None:
        """Take in packed statistics of some groups."""
        self.groups.append(unpack(groups))
        self.turns.append(unpack(turns))


def rollout_parts(store: RunStore) -> list[str]:
    """Names of all rollout parts.

    Raises:
        StageError: There are none.
    """
    parts = store.parts(ROLLOUTS)
    if not parts:
        raise StageError(f"There are no rollouts in {store}.", "Run the rollout stage first.")
    return parts


def read_returns(
    store: RunStore, parts: Sequence[str], configs: Sequence[WeightingConfig]
) -> Returns:
    """Pass 1: read and check all parts, and compute the returns that the weightings need.

    Raises:
        DataError: A part is truncated, foreign or of a newer schema, or holds a value that is
            missing or not finite; names part, row and column.
    """
    import ray.data

    keys = list(dict.fromkeys(map(_ReturnKey.of, configs)))
    one_each = [next(c for c in configs if _ReturnKey.of(c) == key) for key in keys]
    with _ray_data("Reading the rollouts"):
        dataset = ray.data.from_items(
            [{"part": part} for part in parts],
            override_num_blocks=min(len(parts), max(_MIN_TASKS, len(parts) // _PARTS_PER_TASK)),
        )
        read = _map(dataset, read_batch, run_url=store.url, configs=one_each).materialize()
    sources: dict[str, bytes] = {}
    for batch in _batches(read):
        sources |= zip(batch["part"].to_pylist(), batch["source"].to_pylist(), strict=True)
    split = find_split_groups(table for _, table in _tables(read, 0))
    return Returns(dataset=read, keys=keys, sources=sources, split_groups=split)


def prepare(
    returns: Returns, configs: Sequence[WeightingConfig], *, commit_as: str | None = None
) -> list[Prepared]:
    """Settle in the driver what no task can: β of the run, and groups spread over parts.

    Args:
        returns: What :func:`read_returns` found for these weightings.
        configs: How to weigh.
        commit_as: Digest under which to commit the weight parts; those that are there and were
            made of the same stay as they are. None: commit nothing.

    Raises:
        DataError: A trajectory stands in two parts.
    """
    import ray

    prepared = []
    for number, config in enumerate(configs):
        key = returns.keys.index(_ReturnKey.of(config))
        run_beta = _run_beta(returns, key, config)
        settled: dict[str, Settled] = {}
        weighed = None
        if len(returns.split_groups):
            settled, weighed = settle(
                returns.tables(key), returns.split_groups, config, run_beta=run_beta
            )
        job = Job(
            number=number,
            config=config,
            key=key,
            run_beta=run_beta,
            settled=ray.put(settled),
            digest=commit_as,
        )
        prepared.append(Prepared(job=job, split_groups=weighed))
    return prepared


def weigh_parts(store: RunStore, returns: Returns, prepared: Sequence[Prepared]) -> list[Outcome]:
    """Pass 2: weigh every group under every weighting.

    Args:
        store: The run directory.
        returns: What :func:`read_returns` found.
        prepared: What :func:`prepare` made of it.

    Returns:
        One outcome a weighting.

    Raises:
        DataError: A weighting of the user's gives something else than weights.
    """
    outcomes = [Outcome() for _ in prepared]
    for outcome, one in zip(outcomes, prepared, strict=True):
        if one.split_groups is not None:
            outcome.groups.append(one.split_groups.groups)
            outcome.turns.append(one.split_groups.turns)
    jobs = [one.job for one in prepared]
    weighed = _map(returns.dataset, weigh_batch, run_url=store.url, jobs=jobs)
    total = len(returns.sources) * len(jobs)
    with _ray_data("Weighting"), StageProgress("weigh", total=total, unit="parts") as progress:
        for batch in _batches(weighed):
            for number, groups, turns in zip(
                batch["job"].to_pylist(), batch["groups"], batch["turns"], strict=True
            ):
                outcomes[number].add(groups, turns)
            progress.advance(batch.num_rows)
    return outcomes


def _run_beta(returns: Returns, key: int, config: WeightingConfig) -> float | None:
    if not (needs_run_beta(config) and isinstance(config.beta, BetaTarget)):
        return None
    columns = ["prompt_id", "shaped_return", "first_success_turn"]
    everything = one_table([table.select(columns) for _, table in returns.tables(key)])
    return solve_run_beta(
        rows_of(everything), config.beta, drop_all_failed=config.all_failed == "drop"
    )


def _map(dataset: Dataset, function: Callable[..., pa.Table], **arguments: Any) -> Dataset:
    return dataset.map_batches(
        function, fn_kwargs=arguments, batch_size=None, batch_format="pyarrow", num_cpus=1
    )


def _batches(dataset: Dataset) -> Iterator[pa.Table]:
    batches: Iterator[pa.Table] = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    return batches


def _tables(dataset: Dataset, key: int) -> Iterator[tuple[str, pa.Table]]:
    for batch in _batches(dataset):
        for row in np.flatnonzero(batch["key"].to_numpy() == key):
            yield batch["part"][row].as_py(), unpack(batch["returns"][row])


@contextmanager
def _ray_data(what: str) -> Iterator[None]:
    """Ray Data as quiet as this package, its errors in the words of this package."""
    import ray.data
    from ray.exceptions import RayTaskError

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # ours tell all it would
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    try:
        yield
    except RayTaskError as error:
        raise task_failure(error, what) from error
