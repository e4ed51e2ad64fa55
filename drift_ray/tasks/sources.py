"""Where prompts come from: a generator, or a file of JSON lines on any fsspec URL."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from array import array
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn, cast

import fsspec
import numpy as np
import numpy.typing as npt

from drift_ray.errors import TaskError
from drift_ray.tasks import addition
from drift_ray.tasks.prompts import PromptSet, Tally
from drift_ray.types import Prompt

if TYPE_CHECKING:
    from drift_ray.config import PromptsConfig


def load_prompts(config: PromptsConfig, *, task: str, seed: int) -> PromptSet:
    """Check the prompts that ``config`` describes, every one of them; each id is unique.

    A file gives its first ``num_prompts`` rows (blank lines do not count) and is read no further.
    It is read once here, row by row, and again by every iteration over the set: a prompt costs
    some 30 bytes while the ids are compared, and nothing afterwards. ``seed`` decides what a
    generator draws and means nothing to a file.

    Raises:
        TaskError: No prompts, fewer than asked for, or an unusable file, row or field; names the
            file, the row (1-based line number), the field, its value and what to do.
    """
    if config.source == "addition":
        drawn = _draw_sums(config, seed)
        prompts = [dataclasses.replace(prompt, task=task) for prompt in drawn]
        return PromptSet.of(prompts, source=f"task {addition.TASK}")
    return _load_jsonl(config, task)


def _draw_sums(config: PromptsConfig, seed: int) -> list[Prompt]:
    split = cast(addition.Split, config.split)
    # A sum and its mirror image are two prompts, doubles have no mirror image.
    count = config.num_prompts or sum(1 + (a != b) for a, b in addition.pairs(split))
    return addition.prompts(split, count, seed)


def _load_jsonl(config: PromptsConfig, task: str) -> PromptSet:
    path = str(config.path)
    tally, id_hashes = Tally(), array("q")
    for _, prompt in _rows(config, task):
        tally.add(prompt)
        id_hashes.append(hash(prompt.prompt_id))
    _check_ids(id_hashes, config, task)
    found = tally.num_prompts
    if not found:
        raise TaskError(f"{path} holds no prompts", hint="check the path; one JSON object a line")
    if config.num_prompts is not None and found < config.num_prompts:
        raise TaskError(
            f"{path} holds {found} prompts, but num_prompts is {config.num_prompts}",
            hint=f"set num_prompts to at most {found}, or leave it out to take all",
        )
    return tally.prompt_set(source=path, read=partial(_read_jsonl, config, task))


def _read_jsonl(config: PromptsConfig, task: str) -> Iterator[Prompt]:
    return (prompt for _, prompt in _rows(config, task))


def _rows(config: PromptsConfig, task: str) -> Iterator[tuple[int, Prompt]]:
    path = str(config.path)
    for row, line in islice(_lines(path), config.num_prompts):
        yield row, _parse_row(line, _Where(path, row), config, task)


def _check_ids(id_hashes: array[int], config: PromptsConfig, task: str) -> None:
    """Refuse an id that two rows have; the file is read again only where two hashes are equal."""
    for suspect in _repeated(np.frombuffer(id_hashes, np.int64)):
        # Different ids may share a hash, so it is the ids that decide.
        row_of: dict[str, int] = {}
        for row, prompt in _rows(config, task):
            if hash(prompt.prompt_id) == suspect:
                first = row_of.setdefault(prompt.prompt_id, row)
                if first != row:
                    _refuse_duplicate(_Where(str(config.path), row), first, prompt, config.id_field)


def _repeated(hashes: npt.NDArray[np.int64]) -> list[int]:
    """The values that occur more than once, in the order in which they first do so again."""
    order = np.argsort(hashes, kind="stable")
    ascending = hashes[order]
    again = np.sort(order[1:][ascending[1:] == ascending[:-1]])
    return list(dict.fromkeys(hashes[again].tolist()))


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Line numbers and lines, without blank ones; compression follows the file's ending."""
    try:
        with fsspec.open(path, "rb", compression="infer") as file:
            for row, line in enumerate(file, start=1):
                if line.strip():
                    yield row, line
    # ValueError, ImportError: a protocol that fsspec does not know or has no package for.
    except (OSError, EOFError, zlib.error, ValueError, ImportError) as error:
        raise TaskError(
            f"cannot read prompts from {path}: {type(error).__name__}: {error}",
            hint="check the path, its permissions and, if remote, the fsspec package it needs",
        ) from error


@dataclasses.dataclass(frozen=True, slots=True)
class _Where:
    path: str
    row: int

    def refuse(self, problem: str, hint: str) -> NoReturn:
        raise TaskError(f"{self.path}, row {self.row}: {problem}", hint=hint)


def _parse_row(line: bytes, where: _Where, config: PromptsConfig, task: str) -> Prompt:
    row = _decode(line, where)
    question = _text(row, config.question_field, where)
    gold = _scalar_text(row, config.gold_field, where)
    if config.id_field is None:
        # Of the question alone: the id survives reordering and does not depend on other rows.
        prompt_id = hashlib.blake2b(question.encode(), digest_size=10).hexdigest()
    else:
        prompt_id = _scalar_text(row, config.id_field, where)
    return Prompt(prompt_id=prompt_id, task=task, question=question, gold=gold)


def _decode(line: bytes, where: _Where) -> dict[str, Any]:
    try:
        # A byte order mark at the very start is harmless; anywhere else it is not JSON.
        text = line.decode("utf-8-sig" if where.row == 1 else "utf-8")
    except UnicodeDecodeError as error:
        where.refuse(
            f"byte 0x{line[error.start]:02x} at position {error.start} is not UTF-8",
            "save the file as UTF-8",
        )
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        where.refuse(f"invalid JSON ({error}): {_show(text)}", "write one JSON object a line")
    if not isinstance(row, dict):
        where.refuse(f"expected a JSON object, found {_show(row)}", "write one JSON object a line")
    return row


def _scalar_text(row: dict[str, Any], name: str, where: _Where) -> str:
    """A non-empty text field in which numbers and booleans are as good as text."""
    value = row.get(name)
    if isinstance(value, bool | int | float):
        return str(value)
    return _text(row, name, where)


def _text(row: dict[str, Any], name: str, where: _Where) -> str:
    if name not in row:
        where.refuse(
            f"field {name!r} is missing; the row has {sorted(row)}",
            "name the right field in question_field, gold_field or id_field",
        )
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        where.refuse(
            f"field {name!r} is {_show(value)}, expected non-empty text",
            "fill in the field or remove the row",
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        where.refuse(f"field {name!r} is no valid Unicode: {_show(value)}", "repair the escapes")
    return value


def _refuse_duplicate(where: _Where, first: int, prompt: Prompt, id_field: str | None) -> NoReturn:
    if id_field is None:
        where.refuse(
            f"the question {_show(prompt.question)} was already asked in row {first}",
            "remove one of the two rows, or name a field with distinct ids in id_field",
        )
    where.refuse(
        f"field {id_field!r} is {_show(prompt.prompt_id)}, as it already was in row {first}",
        "give every row an id of its own",
    )


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
