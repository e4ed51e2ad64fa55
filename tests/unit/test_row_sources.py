"""CSV, Parquet, hub data sets and benchmarks; what becomes of bad rows in each of them."""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drift_ray.config import PromptsConfig
from drift_ray.errors import TaskError
from drift_ray.tasks.benchmark_files import benchmark_files
from drift_ray.tasks.benchmarks import BENCHMARKS, get_benchmark
from drift_ray.tasks.graders import get_grader
from drift_ray.tasks.prompts import PromptSet
from drift_ray.tasks.sources import load_prompts

Rows = Sequence[dict[str, Any]]


def load(source: str, path: Path | None = None, **settings: Any) -> PromptSet:
    config = PromptsConfig(source=source, path=path and str(path), **settings)
    return load_prompts(config, task="t", seed=0)


def write_jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_csv(path: Path, rows: Rows) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["question", "answer"])
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8")


def write_parquet(path: Path, rows: Rows) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)


WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
}
# A CSV file's first line is its header.
FIRST_ROW = {"jsonl": 1, "csv": 2, "parquet": 1}


@pytest.mark.parametrize("source", WRITERS)
def test_every_kind_of_file_gives_the_same_prompts(source: str, tmp_path: Path) -> None:
    rows = [{"question": f'{k}, "½"\u2028?', "answer": str(k)} for k in range(600)]
    WRITERS[source](tmp_path / "p", rows)
    prompts = load(source, tmp_path / "p")
    assert [(p.question, p.gold) for p in prompts] == [(r["question"], r["answer"]) for r in rows]
    write_jsonl(tmp_path / "same", rows)
    assert prompts == load("jsonl", tmp_path / "same")
    assert [p.gold for p in load(source, tmp_path / "p", num_prompts=2)] == ["0", "1"]


BAD = [
    ({"question": " ", "answer": "1"}, "'question'"),
    ({"question": "null gold", "answer": None}, "'answer'"),
    ({"question": "x" * 1_000_000, "answer": "1"}, "1000000 characters"),
    ({"question": "first", "answer": "again"}, "already asked in row"),
]


@pytest.mark.parametrize("source", WRITERS)
@pytest.mark.parametrize(("bad", "said"), BAD, ids=["empty", "null", "long", "twice"])
def test_a_bad_row_stops_with_file_and_row(
    source: str, bad: dict[str, Any], said: str, tmp_path: Path
) -> None:
    WRITERS[source](tmp_path / "p", [{"question": "first", "answer": "1"}, bad])
    with pytest.raises(TaskError) as caught:
        load(source, tmp_path / "p")
    assert f"{tmp_path / 'p'}, row {FIRST_ROW[source] + 1}:" in str(caught.value)
    assert said in str(caught.value)
    assert caught.value.hint
    assert len(str(caught.value)) < 600 + len(str(tmp_path))


@pytest.mark.parametrize("source", WRITERS)
def test_skipped_rows_are_each_logged_and_counted(
    source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = [{"question": name, "answer": "1"} for name in ("first", "second", "third", "fourth")]
    bad = [row for row, _ in BAD]
    rows = [good[0], bad[0], bad[1], good[1], bad[2], bad[3], good[2], good[3]]
    WRITERS[source](tmp_path / "p", rows)
    prompts = load(source, tmp_path / "p", on_bad_row="skip", num_prompts=3)
    messages = [record.getMessage() for record in caplog.records]
    first = FIRST_ROW[source]
    for at, number in enumerate((1, 2, 4, 5)):
        assert f"{tmp_path / 'p'}, row {first + number}:" in messages[at]
    assert len(messages) == 5
    assert "skipped 4 bad rows" in messages[4]
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    assert [p.question for p in prompts] == ["first", "second", "third"]
    assert len(caplog.records) == 5, "later readings need not tell again"
    with pytest.raises(TaskError, match="4 prompts beside 4 bad rows, but num_prompts is 5"):
        load(source, tmp_path / "p", on_bad_row="skip", num_prompts=5)


def test_wrong_encodings_are_of_one_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = '{"question": "a", "answer": "1"}\n'.encode("ascii")
    latin = '{"question": "\u00e9", "answer": "1"}\n'.encode("latin-1")
    (tmp_path / "p.jsonl").write_bytes(good + latin)
    (tmp_path / "p.csv").write_bytes("question,answer\na,1\n\u00e9,2\n".encode("latin-1"))
    text = pa.array([b"a", b"\xe9"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"question": text, "answer": ["1", "2"]}), tmp_path / "p.parquet")
    for kind, row in (("jsonl", 2), ("csv", 3), ("parquet", 2)):
        path = tmp_path / f"p.{kind}"
        with pytest.raises(TaskError, match=rf"p\.{kind}, row {row}: .*(UTF-8|Unicode)"):
            load(kind, path)
        caplog.clear()
        assert [p.question for p in load(kind, path, on_bad_row="skip")] == ["a"]
        assert f"row {row}:" in caplog.messages[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("question,answer\na,1\nb\n", "row 3: 1 values where the header names 2"),
        ("question,answer\na,1\nb,2,3\n", "row 3: 3 values"),
        ('question,answer\n"two\nlines",1\nb\n', "row 4: 1 values"),
        ('question,answer\na,1\n"b,2\nc,3\n', "row 3: a quote is opened"),
        ('question,answer\na,1\n"b"x,2\n', "row 3: invalid CSV"),
        ("question,question\na,1\n", "names a field twice"),
        ("question,gold\na,1\n", "row 2: field 'answer' is missing"),
        ("question,answer\n", "holds no prompts"),
        ("", "holds no prompts"),
    ],
)
def test_unusable_csv(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text(content)
    with pytest.raises(TaskError) as caught:
        load("csv", path)
    assert said in str(caught.value)


def test_an_open_quote_is_never_skipped(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text('question,answer\na,1\n"b,2\nc,3\n')
    with pytest.raises(TaskError, match="not closed"):
        load("csv", path, on_bad_row="skip")


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_text("question,answer\n")
    with pytest.raises(TaskError, match=r"cannot read prompts from .*p\.parquet"):
        load("parquet", tmp_path / "p.parquet")


def math_row(name: str) -> dict[str, str]:
    return {"problem": name, "solution": f"so \\boxed{{{len(name)}}}"}


def test_a_benchmark_from_a_folder_laid_out_as_on_the_hub(tmp_path: Path) -> None:
    subsets = get_benchmark("hendrycks_math").subsets
    assert subsets is not None
    assert len(subsets) == 7
    for subset in subsets:
        (tmp_path / subset).mkdir()
        for split in ("train", "test"):
            name = f"{split}-00000-of-00001.parquet"
            write_parquet(tmp_path / subset / name, [math_row(f"{subset} {split}")])
    settings = {"dataset": "hendrycks_math", "path": str(tmp_path)}
    prompts = list(load("benchmark", **settings))
    assert [p.question for p in prompts] == [f"{subset} test" for subset in subsets]
    assert prompts[0].gold == str(len("algebra test"))
    (train,) = load("benchmark", split="train", subset="geometry", **settings)
    assert train.question == "geometry train"
    (tmp_path / "geometry" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(TaskError, match="no file of geometry for split 'test'"):
        load("benchmark", **settings)
    with pytest.raises(TaskError, match="no file of split 'validation'"):
        load("benchmark", split="validation", **settings)


def test_a_benchmark_from_one_file_and_questions_that_repeat(tmp_path: Path) -> None:
    row = {"query": "Q?", "response": "so\nThe answer is: 42", "type": "MATH_AnsAug"}
    other = {"query": "Tom?", "response": "The answer is: 1", "type": "GSM_SV"}
    path = tmp_path / "MetaMathQA-395K.json"
    path.write_text(json.dumps([row, other, row]))
    prompts = list(load("benchmark", path, dataset="metamathqa"))
    assert [(p.question, p.gold) for p in prompts] == [("Q?", "42")] * 2
    assert len({p.prompt_id for p in prompts}) == 2
    assert len(load("benchmark", path, dataset="metamathqa", type_prefix="")) == 3
    assert len(load("benchmark", path, dataset="metamathqa", type_prefix="GSM_")) == 1


def test_a_benchmark_row_without_gold_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gpqa_diamond.csv"
    path.write_text("Question,Correct Answer,Incorrect Answer 1\nG?,r,w\nH?,,w\n")
    with pytest.raises(TaskError, match=r"gpqa_diamond\.csv, row 3: gpqa finds no gold"):
        load("benchmark", tmp_path, dataset="gpqa")
    (prompt,) = load("benchmark", tmp_path, dataset="gpqa", num_prompts=1)
    assert prompt.question.startswith("G?\nA. ")


@pytest.mark.parametrize(
    ("dataset", "row"),
    [
        ("mmlu", {"question": " ", "choices": ["a", "b"], "answer": 1}),
        ("mmlu_pro", {"question": None, "options": ["a", "b"], "answer": "B"}),
        ("gpqa", {"Question": "", "Correct Answer": "r", "Incorrect Answer 1": "w"}),
        ("theoremqa", {"Question": "", "Answer": "1", "Picture": "x.png"}),
        ("mtu_bench", {"instruction": "", "gold": {"f": {}}}),
    ],
)
def test_options_or_a_picture_alone_ask_nothing(
    dataset: str, row: dict[str, Any], tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "test.jsonl", [row])
    with pytest.raises(TaskError, match=f"row 1: {dataset} finds no question"):
        load("benchmark", tmp_path / "test.jsonl", dataset=dataset)


def test_only_the_diamond_file_is_read_of_gpqa(tmp_path: Path) -> None:
    for name in ("gpqa_main.csv", "gpqa_diamond.csv", "gpqa_extended.csv"):
        (tmp_path / name).touch()
    assert benchmark_files(str(tmp_path), ["gpqa_diamond"], "train") == [
        str(tmp_path / "gpqa_diamond.csv")
    ]


def test_unknown_benchmarks_are_refused_and_every_suggested_grader_exists() -> None:
    assert get_benchmark("MMLU-Redux") is BENCHMARKS["mmlu_redux"]
    with pytest.raises(TaskError, match="Did you mean 'gsm8k'"):
        get_benchmark("gsm8")
    for benchmark in BENCHMARKS.values():
        assert callable(get_grader(benchmark.grader))


def test_null_fields_of_a_benchmark_are_no_text() -> None:
    for benchmark in BENCHMARKS.values():
        assert benchmark.convert({}) == ("", "")
    assert get_benchmark("theoremqa").convert({"Question": None, "Answer": None}) == ("", "")


def test_the_hub_goes_by_subset_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(hub_id: str, subset: str | None, *, split: str) -> Rows:
        asked.append((hub_id, subset, split))
        return [{"question": f"{subset}?", "answer": "#### 7"}]

    stub = types.SimpleNamespace(
        load_dataset=load_dataset, get_dataset_config_names=lambda hub_id: ["anatomy", "virology"]
    )
    monkeypatch.setitem(sys.modules, "datasets", stub)
    assert [p.gold for p in load("benchmark", dataset="gsm8k")] == ["7"]
    assert len(load("huggingface", dataset="me/mine", subset="s")) == 1
    assert ("openai/gsm8k", "main", "test") in asked
    assert ("me/mine", "s", "train") in asked
    with pytest.raises(TaskError, match=r"mmlu-redux-2\.0/anatomy/test, row 1: mmlu"):
        load("benchmark", dataset="mmlu_redux")


@pytest.mark.parametrize("failure", ["missing", "offline"])
def test_without_the_hub_the_local_alternative_is_named(
    failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to the hub")

    stub = types.SimpleNamespace(load_dataset=offline) if failure == "offline" else None
    monkeypatch.setitem(sys.modules, "datasets", stub)
    for settings in ({"source": "huggingface", "dataset": "me/mine"},
                     {"source": "benchmark", "dataset": "gsm8k"}):  # fmt: skip
        with pytest.raises(TaskError, match="from the Hugging Face hub") as caught:
            load(**settings)
        assert "path" in caught.value.hint
        assert "drift-ray[datasets]" in caught.value.hint
