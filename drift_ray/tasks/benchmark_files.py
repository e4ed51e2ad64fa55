"""Where a benchmark's rows are: files below a local path, or its data set on the hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import fsspec

from drift_ray.errors import TaskError
from drift_ray.tasks.benchmarks import Benchmark
from drift_ray.tasks.hub import read_hub, subsets_of
from drift_ray.tasks.readers import Row, kind_of, read_rows

if TYPE_CHECKING:
    from drift_ray.config import PromptsConfig

_SPLITS = ("train", "test", "validation", "valid", "val", "dev")


def read_benchmark(benchmark: Benchmark, config: PromptsConfig) -> Iterator[Row]:
    """All rows of a benchmark, subset by subset.

    Raises:
        TaskError: No file, subset or split of that name; says what there is.
    """
    split = config.split or benchmark.split
    if config.path is None:
        return _from_hub(benchmark, config.subset, split)
    wanted = (config.subset,) if config.subset else benchmark.subsets or ()
    files = benchmark_files(config.path, wanted, split, must_have=bool(config.subset))
    return chain.from_iterable(read_rows(file, kind_of(file) or "jsonl") for file in files)


def _from_hub(benchmark: Benchmark, subset: str | None, split: str) -> Iterator[Row]:
    subsets: Sequence[str | None] = [subset] if subset else benchmark.subsets or [None]
    if subset is None and benchmark.subsets is None:
        subsets = subsets_of(benchmark.hub_id)
    for each in subsets:
        yield from read_hub(benchmark.hub_id, each, split)


def benchmark_files(
    path: str, subsets: Sequence[str], split: str, *, must_have: bool = False
) -> list[str]:
    """The files that hold these subsets' rows of a split, subset by subset, by name within one.

    A folder may be laid out as on the hub: subsets are folders or begin the files' names, and so
    are splits. Where no file is named by any split, each counts; likewise for subsets, unless
    one of several is missing.

    Args:
        path: A file, which is taken as it is, or a folder, on any fsspec URL.
        subsets: Names, in the order to read them; empty for all files.
        split: For example ``test``.
        must_have: Whether files that name no subset are refused.

    Raises:
        TaskError: There is no such file; says what the folder has.
    """
    names = _below(path)
    if names is None:
        return [path]
    found = [name for name in names if kind_of(name)]
    if any(_bears(name, each) for name in found for each in _SPLITS):
        found = [name for name in found if _bears(name, split)]
    if not found:
        raise _nothing(path, f"no file of split {split!r}", names)
    by_subset = {each: [name for name in found if _bears(name, each)] for each in subsets}
    missing = [each for each, files in by_subset.items() if not files]
    if missing and (must_have or len(missing) < len(subsets)):
        raise _nothing(path, f"no file of {', '.join(missing)} for split {split!r}", names)
    chosen = found if missing or not subsets else list(chain.from_iterable(by_subset.values()))
    return [f"{path.rstrip('/')}/{name}" for name in chosen]


def _below(path: str) -> list[str] | None:
    """The names of all files below a folder, relative to it; None if it is none."""
    try:
        files, root = fsspec.core.url_to_fs(path)
        if not files.isdir(root):
            return None
        root = root.rstrip("/")
        return sorted(name.removeprefix(f"{root}/") for name in files.find(root))
    except (OSError, ValueError, ImportError) as error:
        raise TaskError(
            f"cannot read prompts from {path}: {type(error).__name__}: {error}",
            hint="check the path, its permissions and, if remote, the fsspec package it needs",
        ) from error


def _bears(name: str, word: str) -> bool:
    """Whether a folder of the path, or the file's name up to a separator, is ``word``."""
    *folders, file = name.split("/")
    stem = file.split(".", 1)[0]
    if word in folders or stem == word or stem.startswith(f"{word}-"):
        return True
    return word in _SPLITS and stem.endswith(f"_{word}")


def _nothing(path: str, what: str, names: Sequence[str]) -> TaskError:
    some = ", ".join(names[:10]) + (", …" if len(names) > 10 else "") or "nothing"
    return TaskError(
        f"{path} has {what}; it has {some}",
        hint="name files and folders as on the hub (algebra/test-00000-of-00001.parquet), set "
        "subset or split, or give the file itself as path",
    )
