"""From a configuration to a prompt set: which source it is, and what makes a row a prompt."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np
import numpy.typing as npt

from drift_ray.errors import TaskError
from drift_ray.tasks import addition
from drift_ray.tasks.benchmark_files import read_benchmark
from drift_ray.tasks.benchmark_rows import first_of, plain
from drift_ray.tasks.benchmarks import Benchmark, get_benchmark
from drift_ray.tasks.hub import read_hub
from drift_ray.tasks.prompts import PromptSet, Tally
from drift_ray.tasks.readers import BadRowError, Fields, Row, Where, read_rows, show
from drift_ray.tasks.reasoning_gym import draw
from drift_ray.types import Prompt

if TYPE_CHECKING:
    from drift_ray.config import PromptsConfig

_log = logging.getLogger(__name__)


def load_prompts(config: PromptsConfig, *, task: str, seed: int) -> PromptSet:
    """Check the prompts that ``config`` describes, every one of them; each id is unique.

    A source of rows gives its first ``num_prompts`` (blank lines do not count) and is read no
    further. It is read once here, row by row, and again by every iteration over the set: a prompt
    costs some 30 bytes while the ids are compared, and nothing afterwards. Where bad rows are
    skipped, it costs some 100 bytes whenever the source is read. ``seed`` decides what a
    generator draws and means nothing to rows.

    Raises:
        TaskError: No prompts, fewer than asked for, an unusable file, or a bad row that is not to
            be skipped; names the file, the row (1-based), the field, its value and what to do.
    """
    if config.source == "addition":
        drawn = _draw_sums(config, seed)
        prompts = [dataclasses.replace(prompt, task=task) for prompt in drawn]
        return PromptSet.of(prompts, source=f"task {addition.TASK}")
    if config.source == "reasoning_gym":
        prompts = [dataclasses.replace(prompt, task=task) for prompt in draw(config, seed)]
        return PromptSet.of(prompts, source=f"reasoning-gym {config.dataset}")
    return _Table(config, task).load()


def _draw_sums(config: PromptsConfig, seed: int) -> list[Prompt]:
    split = cast(addition.Split, config.split or "train")
    # A sum and its mirror image are two prompts, doubles have no mirror image.
    count = config.num_prompts or sum(1 + (a != b) for a, b in addition.pairs(split))
    return addition.prompts(split, count, seed)


class _Table:
    """A source of rows: opens it, makes prompts of its rows, and says which rows are bad."""

    def __init__(self, config: PromptsConfig, task: str) -> None:
        self._config = config
        self._task = task
        self._skips = config.on_bad_row == "skip"
        self._open, self._convert, self.name = _opened(config)

    def load(self) -> PromptSet:
        tally, id_hashes, num_bad = Tally(), array("q"), 0
        for found in self._checked(tally):
            if isinstance(found, BadRowError):
                _log.warning("skipped: %s", found.message)
                num_bad += 1
            elif not self._skips:
                id_hashes.append(hash(found.prompt_id))
        self._check_ids(id_hashes)
        if num_bad:
            _log.warning("%s: skipped %d bad rows, see above", self.name, num_bad)
        self._check_number(tally.num_prompts, num_bad)
        return tally.prompt_set(source=self.name, read=self._prompts)

    def _checked(self, tally: Tally) -> Iterator[Prompt | BadRowError]:
        for _, found in self._found():
            if isinstance(found, Prompt):
                tally.add(found)
            yield found

    def _prompts(self) -> Iterator[Prompt]:
        return (found for _, found in self._found() if isinstance(found, Prompt))

    def _found(self) -> Iterator[tuple[Where, Prompt | BadRowError]]:
        """Prompts, as many as are wanted, and in between the bad rows, unless the first raises."""
        wanted, seen, count = self._config.num_prompts, _Seen(), 0
        for ordinal, (where, row) in enumerate(self._open()):
            try:
                if isinstance(row, BadRowError):
                    raise row
                prompt = self._convert(row, where, ordinal)
                if prompt is None:
                    continue
                if self._skips:
                    seen.add(prompt, where, self._config.id_field)
            except BadRowError as error:
                if not self._skips:
                    raise
                yield where, error
                continue
            yield where, dataclasses.replace(prompt, task=self._task)
            count += 1
            if count == wanted:
                return

    def _check_number(self, found: int, num_bad: int) -> None:
        beside = f" beside {num_bad} bad rows" if num_bad else ""
        if not found:
            raise TaskError(
                f"{self.name} holds no prompts{beside}",
                hint="check the path; one JSON object a line, or rows under a header",
            )
        wanted = self._config.num_prompts
        if wanted is not None and found < wanted:
            raise TaskError(
                f"{self.name} holds {found} prompts{beside}, but num_prompts is {wanted}",
                hint=f"set num_prompts to at most {found}, or leave it out to take all",
            )

    def _check_ids(self, id_hashes: array[int]) -> None:
        """Refuse an id that two rows have; the source is read again only where hashes are equal."""
        for suspect in _repeated(np.frombuffer(id_hashes, np.int64)):
            # Different ids may share a hash, so it is the ids that decide.
            place_of: dict[str, Where] = {}
            for where, prompt in self._found():
                if isinstance(prompt, Prompt) and hash(prompt.prompt_id) == suspect:
                    first = place_of.setdefault(prompt.prompt_id, where)
                    if first != where:
                        _refuse_duplicate(where, first, prompt, self._config.id_field)


class _Seen:
    """Which ids were there already, and where."""

    def __init__(self) -> None:
        self._place_of: dict[bytes, tuple[str, int]] = {}

    def add(self, prompt: Prompt, where: Where, id_field: str | None) -> None:
        key = hashlib.blake2b(prompt.prompt_id.encode(), digest_size=16).digest()
        place = (where.path, where.row)
        first = self._place_of.setdefault(key, place)
        if first != place:
            _refuse_duplicate(where, Where(*first), prompt, id_field)


Convert = Callable[[Fields, Where, int], Prompt | None]
"""A row, its place and its 0-based number in the source, to a prompt; None: not asked for."""


def _opened(config: PromptsConfig) -> tuple[Callable[[], Iterator[Row]], Convert, str]:
    """What opens the rows of a source, what converts one, and what messages call the source."""
    if config.source == "benchmark":
        benchmark = get_benchmark(str(config.dataset))
        prefix = benchmark.type_prefix if config.type_prefix is None else config.type_prefix
        name = config.path or benchmark.hub_id
        return (
            partial(read_benchmark, benchmark, config),
            partial(_benchmark_prompt, config, benchmark, prefix),
            name,
        )
    convert = partial(_own_prompt, config)
    if config.source == "huggingface":
        hub_id = str(config.dataset)
        return partial(read_hub, hub_id, config.subset, config.split or "train"), convert, hub_id
    path = str(config.path)
    return partial(read_rows, path, config.source), convert, path


def _own_prompt(config: PromptsConfig, row: Fields, where: Where, ordinal: int) -> Prompt:
    question = _text(row, config.question_field, where)
    gold = _scalar_text(row, config.gold_field, where)
    # Of the question alone: the id survives reordering and does not depend on other rows.
    return _prompt(config, row, where, question, gold, _digest(question))


def _benchmark_prompt(
    config: PromptsConfig,
    benchmark: Benchmark,
    type_prefix: str,
    row: Fields,
    where: Where,
    ordinal: int,
) -> Prompt | None:
    if type_prefix:
        kind = row.get("type")
        if not isinstance(kind, str):
            where.refuse(
                f"field 'type' is {show(kind)}; rows are chosen by type prefix {type_prefix!r}",
                "fill in the field, or set type_prefix to '' to take every row",
            )
        if not kind.startswith(type_prefix):
            return None
    question, gold = benchmark.convert(row)
    if benchmark.asks and not plain(first_of(row, *benchmark.asks)):
        question = ""  # options alone, or a picture, ask nothing
    for what, text in (("question", question), ("gold", gold)):
        if not text:
            where.refuse(
                f"{benchmark.name} finds no {what} in its fields {sorted(map(str, row))}",
                "check that the file is of this benchmark, or remove the row",
            )
        _check_unicode(text, what, where)
    # Benchmarks ask some questions twice, so a row's number tells them apart.
    return _prompt(config, row, where, question, gold, f"{ordinal}-{_digest(question)}")


def _prompt(
    config: PromptsConfig, row: Fields, where: Where, question: str, gold: str, derived_id: str
) -> Prompt:
    if len(question) > config.max_question_chars:
        where.refuse(
            f"the question has {len(question)} characters, more than max_question_chars "
            f"{config.max_question_chars}: {show(question)}",
            "shorten it, remove the row, or raise max_question_chars",
        )
    prompt_id = derived_id
    if config.id_field is not None:
        prompt_id = _scalar_text(row, config.id_field, where)
    return Prompt(prompt_id=prompt_id, task="", question=question, gold=gold)


def _digest(question: str) -> str:
    return hashlib.blake2b(question.encode(), digest_size=10).hexdigest()


def _scalar_text(row: Fields, name: str, where: Where) -> str:
    """A non-empty text field in which numbers and booleans are as good as text."""
    value = row.get(name)
    # Not a number is how pandas writes null into a column of numbers.
    if isinstance(value, bool | int) or (isinstance(value, float) and not math.isnan(value)):
        return str(value)
    return _text(row, name, where)


def _text(row: Fields, name: str, where: Where) -> str:
    if name not in row:
        where.refuse(
            f"field {name!r} is missing; the row has {sorted(row)}",
            "name the right field in question_field, gold_field or id_field",
        )
    value: Any = row[name]
    if not isinstance(value, str) or not value.strip():
        where.refuse(
            f"field {name!r} is {show(value)}, expected non-empty text",
            "fill in the field or remove the row",
        )
    _check_unicode(value, f"field {name!r}", where)
    return value


def _check_unicode(text: str, what: str, where: Where) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        where.refuse(
            f"{what} is no valid Unicode: {show(text)}", "save the file as UTF-8; repair escapes"
        )


def _repeated(hashes: npt.NDArray[np.int64]) -> list[int]:
    """The values that occur more than once, in the order in which they first do so again."""
    order = np.argsort(hashes, kind="stable")
    ascending = hashes[order]
    again = np.sort(order[1:][ascending[1:] == ascending[:-1]])
    return list(dict.fromkeys(hashes[again].tolist()))


def _refuse_duplicate(where: Where, first: Where, prompt: Prompt, id_field: str | None) -> NoReturn:
    at = f"row {first.row}" if first.path == where.path else f"{first.path}, row {first.row}"
    if id_field is None:
        where.refuse(
            f"the question {show(prompt.question)} was already asked in {at}",
            "remove one of the two rows, or name a field with distinct ids in id_field",
        )
    where.refuse(
        f"field {id_field!r} is {show(prompt.prompt_id)}, as it already was in {at}",
        "give every row an id of its own",
    )
