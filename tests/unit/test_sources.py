"""Prompts from generators and files, and what is said about unusable files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import fsspec
import pytest

from drift_ray.config import PromptsConfig
from drift_ray.errors import TaskError
from drift_ray.tasks.prompts import PromptSet
from drift_ray.tasks.sources import load_prompts
from drift_ray.types import Prompt


def load(path: Path | str, **settings: Any) -> PromptSet:
    config = PromptsConfig(source="jsonl", path=str(path), **settings)
    return load_prompts(config, task="t", seed=0)


def write(folder: Path, *rows: object) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_become_prompts(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"key": 7, "problem": "1+1? {x}", "solution": 2},
        {"key": "b", "problem": "½?", "solution": "0.5"},
    )
    prompts = load(path, id_field="key", question_field="problem", gold_field="solution")
    assert list(prompts) == [
        Prompt(prompt_id="7", task="t", question="1+1? {x}", gold="2"),
        Prompt(prompt_id="b", task="t", question="½?", gold="0.5"),
    ]


def test_derived_ids_depend_on_the_question_alone(tmp_path: Path) -> None:
    rows = [{"question": f"{k}?", "answer": str(k)} for k in range(20)]
    forward = {p.question: p.prompt_id for p in load(write(tmp_path, *rows))}
    backward = {p.question: p.prompt_id for p in load(write(tmp_path, *rows[::-1]))}
    assert forward == backward
    assert len(set(forward.values())) == 20
    assert forward["0?"] == "11b9b8538e29e97345c1"  # nor on machine, version or process


def test_num_prompts_takes_the_first_rows_and_reads_no_further(tmp_path: Path) -> None:
    path = write(tmp_path, {"question": "a", "answer": "1"}, {"question": "b", "answer": "2"}, 3)
    assert [p.question for p in load(path, num_prompts=2)] == ["a", "b"]


def test_blank_lines_byte_order_mark_and_compression(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl.gz"
    row = json.dumps({"question": "q", "answer": True})
    path.write_bytes(gzip.compress(f"\ufeff{row}\n\n  \n".encode()))
    (prompt,) = load(path)
    assert (prompt.question, prompt.gold) == ("q", "True")


def test_remote_files_go_through_fsspec() -> None:
    with fsspec.open("memory://sources/p.jsonl", "w") as file:
        file.write('{"question": "q", "answer": "a"}\n')
    assert [p.gold for p in load("memory://sources/p.jsonl")] == ["a"]


GOOD = {"question": "q", "answer": "a"}


@pytest.mark.parametrize(
    ("rows", "settings", "said"),
    [
        ([GOOD, {"answer": "a"}], {}, ["row 2", "'question'", "missing", "'answer'", "field"]),
        ([GOOD, {"question": 5, "answer": "a"}], {}, ["row 2", "'question'", "is 5", "fill in"]),
        ([{"question": " ", "answer": "a"}], {}, ["row 1", "'question'", "' '"]),
        ([{"question": "q", "answer": None}], {}, ["row 1", "'answer'", "None"]),
        ([{"question": "q", "answer": ""}], {}, ["row 1", "'answer'", "''"]),
        ([{"question": "q", "answer": ["a"]}], {}, ["row 1", "'answer'", "['a']"]),
        ([{"question": "\ud800", "answer": "a"}], {}, ["row 1", "'question'", "Unicode"]),
        ([GOOD, {"question": "r", "answer": "b"}, GOOD], {}, ["row 3", "row 1", "'q'", "id_field"]),
        ([GOOD | {"id": 1}, GOOD | {"id": "1"}], {"id_field": "id"}, ["row 2", "row 1", "'id'"]),
        ([GOOD, [1]], {}, ["row 2", "JSON object", "[1]"]),
        ([GOOD], {"num_prompts": 2}, ["holds 1", "num_prompts is 2", "at most 1"]),
        ([], {}, ["no prompts"]),
    ],
)
def test_unusable_rows(
    tmp_path: Path, rows: list[Any], settings: dict[str, Any], said: list[str]
) -> None:
    path = write(tmp_path, *rows)
    with pytest.raises(TaskError) as caught:
        load(path, **settings)
    for words in [str(path), *said]:
        assert words in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b'{"question": "q", "answer": "a"}\n{"question": \n',
            ["row 2", "(Expecting value: line 1"],
        ),
        ('{"question": "caf\u00e9", "answer": "a"}'.encode("latin-1"), ["row 1", "0xe9", "UTF-8"]),
        ('{"question": "q", "answer": "a"}'.encode("utf-16"), ["row 1", "UTF-8"]),
        (b"[" * 100_000, ["row 1", "invalid JSON"]),
    ],
)
def test_unusable_bytes(tmp_path: Path, content: bytes, said: list[str]) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(TaskError) as caught:
        load(path)
    for words in [str(path), *said]:
        assert words in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


@pytest.mark.parametrize("path", ["/no/such/file.jsonl", "nonsense://bucket/p.jsonl", "/"])
def test_unreadable_files(path: str) -> None:
    with pytest.raises(TaskError, match="cannot read prompts from"):
        load(path)


@pytest.mark.parametrize("damage", ["cut", "garbled"])
def test_damaged_compression(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "prompts.jsonl.gz"
    whole = gzip.compress(b'{"question": "q", "answer": "a"}\n')
    path.write_bytes(whole[:-12] if damage == "cut" else whole[:10] + b"\xff" * 40)
    with pytest.raises(TaskError, match="cannot read prompts from"):
        load(path)


def test_addition_is_a_source_and_takes_the_name_of_the_task() -> None:
    config = PromptsConfig(source="addition", split="test", num_prompts=5)
    prompts = load_prompts(config, task="sums", seed=1)
    assert [prompt.task for prompt in prompts] == ["sums"] * 5
    assert prompts == load_prompts(config, task="sums", seed=1)
    assert list(prompts) == list(load_prompts(config, task="sums", seed=1))
    assert prompts != load_prompts(config, task="sums", seed=2)
    assert list(prompts) != list(load_prompts(config, task="sums", seed=2))


@pytest.mark.parametrize("split", ["train", "test"])
def test_addition_without_a_number_gives_every_prompt_of_the_split(split: str) -> None:
    prompts = load_prompts(PromptsConfig(source="addition", split=split), task="sums", seed=0)
    assert len({prompt.prompt_id for prompt in prompts}) == len(prompts)
    one_more = PromptsConfig(source="addition", split=split, num_prompts=len(prompts) + 1)
    with pytest.raises(TaskError, match=f"which has {len(prompts)}"):
        load_prompts(one_more, task="sums", seed=0)
