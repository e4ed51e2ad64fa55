"""A set of prompts is a stream: the same at every reading, and never in memory as a whole."""

from __future__ import annotations

import json
import pickle
import re
import tempfile
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.config import PromptsConfig
from drift_ray.errors import TaskError
from drift_ray.tasks import sources
from drift_ray.tasks.holdout import check_disjoint
from drift_ray.tasks.prompts import PromptSet
from drift_ray.tasks.sources import load_prompts
from drift_ray.types import Prompt

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
PROMPTS = st.lists(
    st.builds(Prompt, prompt_id=TEXT, task=TEXT, question=TEXT, gold=TEXT),
    max_size=6,
    unique_by=lambda prompt: prompt.prompt_id,
)


def in_memory(prompts: Sequence[Prompt]) -> PromptSet:
    return PromptSet.of(prompts, source="test")


def write(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def load(path: Path, **settings: Any) -> PromptSet:
    config = PromptsConfig(source="jsonl", path=str(path), **settings)
    return load_prompts(config, task="t", seed=0)


def rows(*questions: str) -> list[dict[str, str]]:
    return [{"question": question, "answer": "1"} for question in questions]


@given(prompts=PROMPTS)
def test_a_set_gives_its_prompts_at_every_reading(prompts: list[Prompt]) -> None:
    found = in_memory(prompts)
    assert found.num_prompts == len(found) == len(prompts)
    assert list(found) == list(found) == prompts


@given(one=PROMPTS, two=PROMPTS)
def test_sets_are_equal_if_their_prompts_are(one: list[Prompt], two: list[Prompt]) -> None:
    assert (in_memory(one) == in_memory(two)) == (one == two)
    assert (in_memory(one).digest == in_memory(two).digest) == (one == two)
    assert (in_memory(one) == in_memory(one[::-1])) == (len(one) < 2)


def test_the_digest_is_the_same_everywhere_and_keeps_fields_apart() -> None:
    def digest(*fields: str) -> str:
        return in_memory([Prompt(**dict(zip(Prompt.__slots__, fields, strict=True)))]).digest

    assert digest("a", "t", "½?", "1") == "614de522d381a43ca7b707c2d62de364"
    shifted = {
        digest("ab", "c", "d", "e"),
        digest("a", "bc", "d", "e"),
        digest("a", "b", "cd", "e"),
        digest("a", "b", "c", "de"),
    }
    assert len(shifted) == 4


@given(
    questions=st.lists(TEXT.filter(str.strip), min_size=1, max_size=8, unique=True),
    data=st.data(),
)
def test_a_file_streams_what_was_written(questions: list[str], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(questions)))
    with tempfile.TemporaryDirectory() as folder:
        found = load(write(Path(folder) / "p.jsonl", rows(*questions)), num_prompts=count)
        listed = list(found)
        assert [prompt.question for prompt in listed] == questions[:count]
        assert list(found) == listed
        assert list(pickle.loads(pickle.dumps(found))) == listed
        assert found == in_memory(listed)


@given(ids=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12), weak=st.booleans())
def test_the_first_repeated_id_is_named_with_both_rows(ids: list[str], weak: bool) -> None:
    repeats = [row for row, name in enumerate(ids, start=1) if name in ids[: row - 1]]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        if weak:  # ids that share a hash are not thereby the same
            patch.setattr(sources, "hash", lambda name: ord(name) % 3, raising=False)
        numbered = [{"id": name} | row for name, row in zip(ids, rows(*ids), strict=True)]
        path = write(Path(folder) / "p.jsonl", numbered)
        if not repeats:
            assert [prompt.prompt_id for prompt in load(path, id_field="id")] == ids
            return
        with pytest.raises(TaskError) as caught:
            load(path, id_field="id")
    said = re.search(r", row (\d+): field 'id' is '(\w)', .* in row (\d+)\n", str(caught.value))
    assert said
    row, first = int(said[1]), int(said[3])
    assert first < row
    assert ids[row - 1] == ids[first - 1] == said[2]
    assert weak or (row, first) == (repeats[0], 1 + ids.index(said[2]))


@pytest.mark.parametrize(
    ("change", "given"),
    [
        (lambda path: write(path, rows("a", "b", "c", "d")), "abc"),
        (lambda path: write(path, rows("a", "b")), "ab"),
        (lambda path: write(path, rows("a", "c", "b")), "acb"),
        (lambda path: path.write_text(""), ""),
    ],
    ids=["longer", "shorter", "another order", "empty"],
)
def test_a_file_that_changes_while_in_use_is_refused(
    tmp_path: Path, change: Callable[[Path], object], given: str
) -> None:
    path = write(tmp_path / "p.jsonl", rows("a", "b", "c"))
    found = load(path)
    change(path)
    seen: list[str] = []
    with pytest.raises(TaskError, match="changed while in use") as caught:
        seen.extend(prompt.question for prompt in found)
    assert "".join(seen) == given  # never more than the set has
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_a_file_that_is_gone_or_broken_at_the_second_reading_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", rows("a", "b"))
    found = load(path)
    path.write_text("{")
    with pytest.raises(TaskError, match="row 1: invalid JSON"):
        list(found)
    path.unlink()
    with pytest.raises(TaskError, match="cannot read prompts from"):
        list(found)


def test_who_stops_early_reads_no_further(tmp_path: Path) -> None:
    found = load(write(tmp_path / "p.jsonl", rows("a", "b", "c")))
    write(tmp_path / "p.jsonl", [*rows("a", "b"), {"broken": ""}])
    assert [prompt.question for prompt in islice(found, 2)] == ["a", "b"]


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    num_rows, held_out = 10_000, 1_000
    path = tmp_path / "train.jsonl"
    with path.open("w") as file:
        for k in range(num_rows):
            file.write(f'{{"question": "{k:08} {"x" * 80}", "answer": "{k}"}}\n')
    test = load(write(tmp_path / "test.jsonl", rows(*(f"q{k}" for k in range(held_out)))))
    tracemalloc.start()
    try:
        train = load(path)
        loading = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        check_disjoint(train, test)
        comparing = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(train) == num_rows
    print(f"load {loading / 2**20:.2f} MiB, compare {comparing / 2**20:.2f} MiB")
    # As a list the prompts would take 3 MiB. Here: hashes of 8 bytes, what sorts them, a buffer.
    assert loading < 50 * num_rows + 2**18
    # A batch of one set and the hashes of the other.
    assert comparing < 2 * 2**20
