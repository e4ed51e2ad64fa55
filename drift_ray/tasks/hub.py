"""Rows of data sets on the Hugging Face hub, or in its cache on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from drift_ray.errors import TaskError
from drift_ray.tasks.readers import Row, Where


def read_hub(hub_id: str, subset: str | None, split: str) -> Iterator[Row]:
    """The rows of a split, by number; downloaded once, then read from the cache.

    Raises:
        TaskError: The package is missing, the hub out of reach, or there is no such data set,
            subset or split; names the local alternative.
    """
    name = "/".join(filter(None, (hub_id, subset, split)))
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as error:
        raise _unavailable(name, f"package {error.name!r} is missing") from None
    try:
        rows = load_dataset(hub_id, subset, split=split)
    # Its errors come from half a dozen packages, and each of them means the same here.
    except Exception as error:
        raise _unavailable(name, f"{type(error).__name__}: {error}") from error
    for number, fields in enumerate(rows, start=1):
        yield Where(name, number), fields


def subsets_of(hub_id: str) -> list[str]:
    """The names of a data set's configurations.

    Raises:
        TaskError: As for :func:`read_hub`.
    """
    try:
        from datasets import get_dataset_config_names
    except ModuleNotFoundError as error:
        raise _unavailable(hub_id, f"package {error.name!r} is missing") from None
    try:
        names: Any = get_dataset_config_names(hub_id)
    except Exception as error:
        raise _unavailable(hub_id, f"{type(error).__name__}: {error}") from error
    return list(names)


def _unavailable(name: str, why: str) -> TaskError:
    return TaskError(
        f"cannot load {name} from the Hugging Face hub: {why[:300]}",
        hint="install drift-ray[datasets] and check name, subset, split and network (gated data "
        "sets need a login); or download the files once and name them by path: source 'benchmark' "
        "with a path, or 'jsonl', 'csv' or 'parquet' with question_field and gold_field",
    )
