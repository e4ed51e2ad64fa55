"""Files to rows: JSON lines, JSON arrays, CSV and Parquet, on any fsspec URL, one row at a time.

A row that cannot be read is handed on as the error it is, so that a reader may go on behind it.
"""

from __future__ import annotations

import csv
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, NoReturn

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from drift_ray.errors import TaskError

_BATCH_ROWS = 256


class BadRowError(TaskError):
    """One row is unusable; the rows around it may be fine."""


@dataclass(frozen=True, slots=True)
class Where:
    """A row's place: its file, and its line or, in Parquet, arrays and hub data sets, its number.

    Rows count from 1; a CSV record over several lines has the number of the first.
    """

    path: str
    row: int

    def refuse(self, problem: str, hint: str) -> NoReturn:
        """Raise the error that names this row.

        Raises:
            BadRowError: Always.
        """
        raise BadRowError(f"{self.path}, row {self.row}: {problem}", hint=hint)


Fields = dict[str, Any]
Row = tuple[Where, Fields | BadRowError]
"""Where it stands, and its fields by name or why it has none."""


def read_rows(path: str, kind: str) -> Iterator[Row]:
    """The rows of one file in file order; blank lines are no rows.

    Args:
        path: Any fsspec URL; compression follows the ending.
        kind: ``jsonl``, ``json`` (one array of objects), ``csv`` or ``parquet``.

    Raises:
        TaskError: The file cannot be opened, read to its end, or told into rows.
    """
    with _reporting(path):
        yield from _READERS[kind](path)


def kind_of(path: str) -> str | None:
    """What a file is by its ending, a compression's ending aside; None if unknown."""
    name = path.rsplit("/", 1)[-1].lower()
    for compression in (".gz", ".bz2", ".xz", ".zst"):
        name = name.removesuffix(compression)
    kind = name.rpartition(".")[2]
    return {"ndjson": "jsonl"}.get(kind, kind) if kind in {"ndjson", *_READERS} else None


def show(value: object) -> str:
    """A value as messages quote it: at most 80 characters."""
    text = repr(value[:100]) if isinstance(value, str | bytes) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@contextmanager
def _reporting(path: str) -> Iterator[None]:
    try:
        yield
    except TaskError:
        raise
    # ValueError, ImportError: a protocol that fsspec does not know or has no package for.
    except (OSError, EOFError, zlib.error, ValueError, ImportError, pa.ArrowException) as error:
        raise TaskError(
            f"cannot read prompts from {path}: {type(error).__name__}: {error}",
            hint="check the path, its permissions and, if remote, the fsspec package it needs",
        ) from error


def _read_jsonl(path: str) -> Iterator[Row]:
    with fsspec.open(path, "rb", compression="infer") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _row(Where(path, number), partial(_decode, line))


def _row(where: Where, read: Callable[[Where], Fields]) -> Row:
    try:
        return where, read(where)
    except BadRowError as error:
        return where, error


def _decode(line: bytes, where: Where) -> Fields:
    try:
        # A byte order mark at the very start is harmless; anywhere else it is not JSON.
        text = line.decode("utf-8-sig" if where.row == 1 else "utf-8")
    except UnicodeDecodeError as error:
        where.refuse(
            f"byte 0x{line[error.start]:02x} at position {error.start} is not UTF-8",
            "save the file as UTF-8",
        )
    text = text.rstrip("\r\n")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        where.refuse(f"invalid JSON ({error}): {show(text)}", "write one JSON object a line")
    return _object(fields, where)


def _object(fields: object, where: Where) -> Fields:
    if not isinstance(fields, dict):
        where.refuse(f"expected a JSON object, found {show(fields)}", "write one JSON object a row")
    return fields


def _read_json(path: str) -> Iterator[Row]:
    """The objects of one array, which is held as a whole; JSON lines that are named so, too."""
    with fsspec.open(path, "rb", compression="infer") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"{"):
        yield from _read_jsonl(path)
        return
    with fsspec.open(path, "rt", compression="infer", encoding="utf-8-sig") as file:
        rows = json.load(file)
    if not isinstance(rows, list):
        raise TaskError(f"{path} holds {show(rows)}, expected an array of JSON objects")
    for number, fields in enumerate(rows, start=1):
        yield _row(Where(path, number), partial(_object, fields))


def _read_csv(path: str) -> Iterator[Row]:
    # The module's limit of 128 KiB a field is below what max_question_chars may allow.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    # Bytes that are not UTF-8 survive as surrogates, which the check of each field refuses.
    with fsspec.open(
        path,
        "rt",
        compression="infer",
        encoding="utf-8-sig",
        errors="surrogateescape",
        newline="",
    ) as file:
        yield from _records(path, file)


def _records(path: str, file: IO[str]) -> Iterator[Row]:
    reader = csv.reader(file, strict=True)
    names: list[str] | None = None
    while True:
        where = Where(path, reader.line_num + 1)
        try:
            record = next(reader, None)
        except csv.Error as error:
            _refuse_open_quote(where, error)
            yield (
                where,
                BadRowError(
                    f"{path}, row {where.row}: invalid CSV ({error})",
                    hint="quote the field properly",
                ),
            )
            continue
        if record is None:
            return
        if not record:
            continue
        if names is None:
            names = _header(path, record)
        else:
            yield _row(where, partial(_named, names, record))


def _refuse_open_quote(where: Where, error: csv.Error) -> None:
    """An open quote takes in all rows behind it, so that none of them may count as skipped."""
    if "unexpected end" in str(error):
        raise TaskError(
            f"{where.path}, row {where.row}: a quote is opened and not closed before the file ends",
            hint='close the quote; a quote within a quoted field is written ""',
        ) from error


def _header(path: str, names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise TaskError(
            f"{path}: the header names a field twice: {show(names)}",
            hint="the first line names the fields, each once",
        )
    return names


def _named(names: list[str], record: list[str], where: Where) -> Fields:
    if len(names) != len(record):
        where.refuse(
            f"{len(record)} values where the header names {len(names)} fields",
            "quote values that hold commas or line breaks",
        )
    return dict(zip(names, record, strict=True))


def _read_parquet(path: str) -> Iterator[Row]:
    number = 0
    with fsspec.open(path, "rb") as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=_BATCH_ROWS):
            rows = _decoded(batch)
            for index in range(batch.num_rows):
                number += 1
                where = Where(path, number)
                yield (where, rows[index]) if rows else _row(where, partial(_nth, batch, index))


def _decoded(batch: pa.RecordBatch) -> list[Fields] | None:
    """The rows at once; None where some text is not UTF-8 and each has to be looked at."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return None


def _nth(batch: pa.RecordBatch, index: int, where: Where) -> Fields:
    try:
        return batch.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        where.refuse(
            f"byte 0x{error.object[error.start]:02x} is not UTF-8", "write its text as UTF-8"
        )


_READERS: dict[str, Callable[[str], Iterator[Row]]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
}
