"""Which trajectories the page carries: all of a small run, whole prompts of a large one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from drift_ray.report.payload import COLUMNS, Payload, group_betas
from drift_ray.report.results import RunResults
from drift_ray.report.tokens import TokenSpans, load_tokenizer
from drift_ray.report.trajectories import Source, scattered
from drift_ray.store import RunStore

MAX_TRAJECTORIES = 10_000
"""Of the rollouts, and again of all evaluations together, unless told otherwise."""
MAX_CHARS = 8_000_000
"""Of messages, of each of these two: that makes 5 MB of page at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """How much of a source stands in the page."""

    name: str
    num_shown: int
    num_all: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bounds:
    rows: int
    chars: int
    """Of their messages."""


def select(
    store: RunStore, results: RunResults, max_trajectories: int = MAX_TRAJECTORIES
) -> tuple[Payload, list[Shown]]:
    """Collect trajectories for the page.

    A source that is larger than its share is cut by whole prompts, chosen by a hash of their ids.
    Models evaluated on the same prompts are shown on the same ones.

    Args:
        store: The run directory.
        results: Of the run.
        max_trajectories: At most about so many rollouts, and so many evaluated trajectories.

    Raises:
        DataError: A part is damaged or foreign.
    """
    tokenizer = load_tokenizer(store, results.config.model.path)
    payload = Payload(spans=None if tokenizer is None else TokenSpans(tokenizer))
    sources = results.sources(store)
    num_evaluations = sum(name != "rollouts" for name in sources)
    prompts: dict[str, pa.Array] = {}
    shown = []
    for number, (name, source) in enumerate(sources.items()):
        benchmark, _, model = name.rpartition("/")
        share = num_evaluations if benchmark else 1
        bounds = _Bounds(rows=max(max_trajectories // share, 1), chars=max(MAX_CHARS // share, 1))
        table, num_all = _read(store, source, bounds, prompts.get(benchmark))
        prompts[benchmark] = table["prompt_id"].unique()
        payload.sources.append({"name": name, "benchmark": benchmark, "model": model})
        differ = source.weights is not None and _betas_differ(results.weights)
        payload.add(table, number, group_betas(table) if differ else {})
        shown.append(Shown(name=name, num_shown=table.num_rows, num_all=num_all))
    return payload, shown


def _read(
    store: RunStore, source: Source, bounds: _Bounds, prompts: pa.Array | None
) -> tuple[pa.Table, int]:
    """Rows of a source within the bounds, and how many there are in all.

    Args:
        store: The run directory.
        source: To read.
        bounds: How much to keep; no more parts are read than that takes.
        prompts: Keep those of these prompts instead, which the bounds were applied to before.
    """
    parts = source.parts(store)
    tables: dict[str, pa.Table] = {}
    num_rows = num_chars = 0
    for part in scattered(parts):
        if num_rows >= bounds.rows or (prompts is None and num_chars >= bounds.chars):
            break
        tables[part] = source.read(store, part, COLUMNS)
        num_rows += tables[part].num_rows
        num_chars += int(_num_chars(tables[part]).sum())
    table = pa.concat_tables(tables[part] for part in parts if part in tables).combine_chunks()
    if prompts is not None:
        table = table.filter(pc.is_in(table["prompt_id"], prompts))
    elif num_rows > bounds.rows or num_chars > bounds.chars:
        table = table.take(_by_hash(table["prompt_id"].combine_chunks()))
        table = _whole_prompts(table, bounds)
    return table.combine_chunks(), store.num_rows(parts)


def _whole_prompts(table: pa.Table, bounds: _Bounds) -> pa.Table:
    """The first prompts of a table that fit the bounds, or the first one if not even that does.

    Rows of one prompt stand together.
    """
    codes = table["prompt_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    ends = np.append(np.flatnonzero(np.diff(codes)) + 1, len(codes))
    chars = np.cumsum(_num_chars(table))[ends - 1]
    fits = np.count_nonzero((ends <= bounds.rows) & (chars <= bounds.chars))
    return table.slice(0, int(ends[max(int(fits), 1) - 1]))


def _by_hash(prompt_ids: pa.Array) -> pa.Array:
    """Row numbers, prompts in the order of their hashes, rows of a prompt in their own order."""
    encoded = prompt_ids.dictionary_encode()
    hashes = pa.array(
        [
            hashlib.blake2b(each.encode(), digest_size=8).hexdigest()
            for each in encoded.dictionary.to_pylist()
        ]
    )
    keys = pa.table({"hash": hashes.take(encoded.indices), "row": pa.array(range(len(prompt_ids)))})
    return pc.sort_indices(keys, sort_keys=[("hash", "ascending"), ("row", "ascending")])


def _num_chars(table: pa.Table) -> npt.NDArray[np.int64]:
    """Characters of every row's messages; the question counts once for a prompt."""
    messages = table["messages"].combine_chunks()
    lengths = pc.utf8_length(messages.values.field("content")).to_numpy(zero_copy_only=False)
    sums = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    chars = np.diff(sums[messages.offsets.to_numpy()])
    prompts = table["prompt_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    is_again = np.concatenate([[False], prompts[1:] == prompts[:-1]])
    questions = pc.utf8_length(table["question"].combine_chunks()).to_numpy()
    return np.maximum(chars - is_again * questions, 0)


def _betas_differ(weights: Mapping[str, Any] | None) -> bool:
    beta = weights["beta"] if weights else None
    return beta is not None and beta["min"] != beta["max"]
