"""Trajectories of a run as Arrow tables, each with the return and the weight it was given."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from drift_ray.errors import DataError, StageError
from drift_ray.schema import CONTENT_KEY, SOURCE_KEY, TRAJECTORY_SCHEMA, WEIGHT_SCHEMA
from drift_ray.store import ROLLOUTS, WEIGHTS, RunStore

_WEIGHED = ("discounted_return", "repetition_penalty", "shaped_return", "importance_weight")

WEIGHED_SCHEMA = pa.schema(
    [*TRAJECTORY_SCHEMA, *(WEIGHT_SCHEMA.field(name) for name in _WEIGHED)],
    metadata=TRAJECTORY_SCHEMA.metadata,
)
"""Columns of ``TRAJECTORY_SCHEMA``, then what the weighting made of them: null where a trajectory
was not weighed (evaluations never are)."""


def applied_format_penalty(row: Mapping[str, Any]) -> float:
    """The format penalty within a trajectory's return; of one not weighed, the recorded one.

    It is what the return's other terms leave, to 12 digits after the point: no trace of rounding
    stands in for zero.
    """
    if row["shaped_return"] is None:
        return float(row["format_penalty"])
    rest = row["shaped_return"] - row["discounted_return"] + row["repetition_penalty"]
    return round(float(rest), 12) + 0.0  # never -0


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A folder of trajectories in a run directory."""

    folder: str
    weights: str | None = None
    """Folder of the weight tables beside its parts; None where it was not weighed."""

    @classmethod
    def rollouts(cls, store: RunStore, weighting: str) -> Source:
        """The trajectories that are trained on, with the weights of this name if there are any."""
        weights = f"{WEIGHTS}/{weighting}"
        finished = store.exists(f"{weights}/summary.json")
        return cls(folder=ROLLOUTS, weights=weights if finished else None)

    def parts(self, store: RunStore) -> list[str]:
        """Names of the parts.

        Raises:
            StageError: There are none.
        """
        parts = store.parts(self.folder)
        if not parts:
            raise StageError(
                f"There are no trajectories in {store.path(self.folder)}.",
                "Run `drift-ray rollout` (or evaluate) first.",
            )
        return parts

    def read(self, store: RunStore, part: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A part, with the columns of :data:`WEIGHED_SCHEMA` or some of them, in that order.

        Raises:
            DataError: A file is damaged or foreign, or there is no such column.
        """
        names = WEIGHED_SCHEMA.names if columns is None else list(columns)
        if unknown := sorted(set(names) - set(WEIGHED_SCHEMA.names)):
            raise DataError(
                f"Trajectories have no column {unknown[0]!r}.",
                f"Columns are {', '.join(WEIGHED_SCHEMA.names)}.",
            )
        own = [name for name in names if name not in _WEIGHED]
        table = store.read_table(part, TRAJECTORY_SCHEMA, own)
        weighed = [name for name in names if name in _WEIGHED]
        weights = self._weights(store, part, weighed, table.schema.metadata) if weighed else None
        for name in weighed:
            field = WEIGHED_SCHEMA.field(name)
            column = pa.nulls(_num_rows(store, part, table), field.type)
            table = table.append_column(field, column if weights is None else weights[name])
        return table.select(names).replace_schema_metadata(TRAJECTORY_SCHEMA.metadata)

    def _weights(
        self, store: RunStore, part: str, columns: list[str], metadata: dict[bytes, bytes]
    ) -> pa.Table | None:
        """The weight table of a part, if there is one that was made of the part as it is now."""
        file = f"{self.weights}/{part.rsplit('/', 1)[1]}"
        if self.weights is None or not store.exists(file):
            return None
        weights = store.read_table(file, WEIGHT_SCHEMA, columns)
        is_its = weights.schema.metadata.get(SOURCE_KEY) == metadata.get(CONTENT_KEY)
        return weights if is_its else None


def scattered(parts: Sequence[str]) -> list[str]:
    """Parts in an order that favours no end of the run.

    It goes by the number in their names: the same prompts come first for every model that was
    evaluated on them.
    """

    def place(part: str) -> bytes:
        number = part.rsplit("/", 1)[1].rsplit("-", 1)[0]
        return hashlib.blake2b(number.encode()).digest()

    return sorted(parts, key=lambda part: (place(part), part))


def read_all(
    store: RunStore, source: Source, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """The parts of a source one after the other. Raises as :meth:`Source.read`."""
    for part in source.parts(store):
        yield source.read(store, part, columns)


def _num_rows(store: RunStore, part: str, table: pa.Table) -> int:
    return table.num_rows if table.num_columns else store.num_rows([part])
