"""What report and terminal are made of: trajectories with their weights, and their tokens."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drift_ray.config import WeightingConfig
from drift_ray.errors import ConfigError, DataError, StageError
from drift_ray.report import selection
from drift_ray.report.payload import COLUMNS, LEVELS_PER_NAT, Payload, group_betas
from drift_ray.report.results import read_results
from drift_ray.report.selection import select
from drift_ray.report.tokens import TokenSpans, load_tokenizer, utf16_length
from drift_ray.report.trajectories import WEIGHED_SCHEMA, Source, scattered
from drift_ray.schema import TRAJECTORY_SCHEMA, trajectory_table
from drift_ray.weighting.part import return_table
from drift_ray.weighting.weigh import weigh_groups
from tests.unit.report_cases import PART, claimed, finished_run, group, played, tokenizer, weigh


def unpacked(payload: Payload, **more: Any) -> tuple[dict[str, Any], bytes]:
    packed = payload.encode(**more).items()
    streams = {name: gzip.decompress(base64.b64decode(text)) for name, text in packed}
    return json.loads(streams["columns"]), streams["tokens"]


def spans() -> TokenSpans:
    return TokenSpans(tokenizer().backend_tokenizer)


def test_trajectories_come_with_their_weights(tmp_path: Path) -> None:
    store = finished_run(tmp_path, [group("a"), group("b")])
    table = Source.rollouts(store, "drift").read(store, PART)
    assert table.schema.names == WEIGHED_SCHEMA.names
    assert table.schema.types == WEIGHED_SCHEMA.types
    assert table.schema.metadata == TRAJECTORY_SCHEMA.metadata
    assert table["importance_weight"].to_numpy().reshape(2, 4).mean(axis=1) == pytest.approx(1.0)
    assert table["shaped_return"].to_pylist()[:2] == pytest.approx([1.0, 0.9])


def test_trajectories_without_weights_of_their_own_have_none(tmp_path: Path) -> None:
    store, config = claimed(tmp_path)
    store.write_table(PART, trajectory_table(group("a")))
    columns = ["importance_weight", "prompt_id"]
    before = Source.rollouts(store, "drift").read(store, PART, columns)
    assert before.column_names == columns
    assert before["importance_weight"].null_count == 4
    weigh(store, config)
    store.write_table(PART, trajectory_table(group("b")))  # sampled again since
    after = Source.rollouts(store, "drift").read(store, PART, ["importance_weight"])
    assert after["importance_weight"].null_count == after.num_rows == 4


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    store, _ = claimed(tmp_path)
    source = Source.rollouts(store, "drift")
    with pytest.raises(StageError, match="no trajectories"):
        source.parts(store)
    store.write_table(PART, trajectory_table(group("a")))
    with pytest.raises(DataError, match=r"'weight'.*\n.*importance_weight"):
        source.read(store, PART, ["weight"])
    with pytest.raises(ConfigError, match="no run"):
        read_results(str(tmp_path / "elsewhere"))


def test_parts_come_in_an_order_of_their_own_that_models_share() -> None:
    parts = [f"rollouts/part-{number:06d}-{number}.parquet" for number in range(20)]
    others = [f"evaluation/x/part-{number:06d}-f.parquet" for number in range(20)]
    order = [parts.index(part) for part in scattered(parts)]
    assert sorted(order) == list(range(20)) != order
    assert [others.index(part) for part in scattered(others)] == order


@settings(max_examples=30)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=5))
def test_tokens_cover_the_text_but_for_the_prefill(texts: list[str]) -> None:
    sampled = [
        np.asarray(tokenizer().encode(text, add_special_tokens=False), np.int32) for text in texts
    ]
    shown = ["<answer>" + tokenizer().decode(ids, skip_special_tokens=True) for ids in sampled]
    for text, ids, lengths in zip(shown, sampled, spans().lengths(shown, sampled), strict=True):
        assert lengths is not None
        assert len(lengths) == len(ids)
        assert sum(lengths) == utf16_length(text) - len("<answer>")


def test_tokens_that_spell_something_else_cover_nothing() -> None:
    ids = np.asarray(tokenizer().encode("12", add_special_tokens=False), np.int32)
    assert spans().lengths(["<answer>13"], [ids]) == [None]


def test_a_character_of_several_tokens_belongs_to_its_last_one() -> None:
    ids = np.asarray(tokenizer().encode("a😀b", add_special_tokens=False), np.int32)
    (lengths,) = spans().lengths(["a😀b"], [ids])
    assert lengths is not None
    assert [each for each in lengths if each] == [1, 2, 1]
    assert len(lengths) == len(ids) > 3


def test_the_payload_says_what_the_table_says(tmp_path: Path) -> None:
    store = finished_run(tmp_path, [group("a", question="what?"), group("b")])
    table = Source.rollouts(store, "drift").read(store, PART, COLUMNS)
    payload = Payload(spans=spans())
    payload.add(table, 0, {})
    content, tokens = unpacked(payload)
    texts, turns, rows = content["texts"], content["turns"], content["rows"]
    assert rows["w"] == pytest.approx(table["importance_weight"].to_pylist(), rel=1e-5)
    assert rows["ret"] == pytest.approx(table["shaped_return"].to_pylist(), rel=1e-5)
    assert [each or None for each in rows["first"]] == table["first_success_turn"].to_pylist()
    assert rows["distinct"][-1] == 1
    assert rows["total"][-1] == 3
    assert [texts[number] for number in content["prompts"][0]] == ["a", "what?", "1"]
    flat = table["turns"].combine_chunks().flatten()
    assert [texts[number] for number in turns["text"]] == flat.field("text").to_pylist()
    assert len(texts) == len(set(texts))
    lengths, levels = np.split(np.frombuffer(tokens, np.uint8), 2)
    assert len(lengths) == sum(turns["tokens"])
    first = table["logprobs"][0].as_py()[2 : 2 + turns["tokens"][0]]
    assert (levels[: len(first)] / -LEVELS_PER_NAT).tolist() == pytest.approx(first)


def test_messages_without_tokenizer_have_no_tokens(tmp_path: Path) -> None:
    store = finished_run(tmp_path, [group("a")])
    payload = Payload(spans=None)
    payload.add(Source.rollouts(store, "drift").read(store, PART, COLUMNS), 0, {})
    content, tokens = unpacked(payload)
    assert set(content["turns"]["tokens"]) == {-1}
    assert tokens == b""


def test_a_tokenizer_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    store, _ = claimed(tmp_path)
    assert load_tokenizer(store, "builtin:nano") is not None
    assert load_tokenizer(store, "some/hub-id") is None
    store.write_bytes("model/tokenizer.json", b"{}")
    assert load_tokenizer(store, "builtin:nano") is None


@pytest.mark.parametrize("beta", [0.05, 0.7])
def test_beta_is_what_the_weights_were_made_with(beta: float) -> None:
    config = WeightingConfig(beta=beta)
    returns = return_table(trajectory_table([*group("a"), played("b", 0, ["1"])]), config)
    weight = weigh_groups(returns, config, run_beta=None).importance_weight
    found = group_betas(returns.append_column("importance_weight", pa.array(weight)))
    assert found == {"a": pytest.approx(beta)}


def test_a_large_run_is_cut_by_whole_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = finished_run(tmp_path, [group(f"p{number}") for number in range(30)])
    results = read_results(store.url)
    payload, shown = select(store, results, max_trajectories=22)
    content, _ = unpacked(payload)
    assert [(each.name, each.num_shown, each.num_all) for each in shown] == [
        ("rollouts", 20, 120),
        ("addition/reference", 11, 30),
        ("addition/trained", 11, 30),
    ]
    prompts: list[set[int]] = [set(), set(), set()]
    for source, prompt in zip(content["rows"]["source"], content["rows"]["prompt"], strict=True):
        prompts[source].add(prompt)
    assert len(prompts[0]) == 5
    assert prompts[1] == prompts[2]
    assert len(prompts[1]) == 11
    monkeypatch.setattr(selection, "MAX_CHARS", 1)
    _, shown = select(store, results)
    assert [each.num_shown for each in shown] == [4, 1, 1]


def test_results_of_a_run_that_has_only_begun_are_empty(tmp_path: Path) -> None:
    store, _ = claimed(tmp_path)
    results = read_results(store.url)
    assert (results.weights, results.model, results.evaluations) == (None, None, {})
    assert (results.training, results.sampling, results.sources(store)) == ([], [], {})


def test_results_say_what_was_made_by_other_settings(tmp_path: Path) -> None:
    store = finished_run(tmp_path, [group("a")])
    assert read_results(store.url).stale == []
    store.write_json("model/drift_ray.json", {"digest": "newer"})
    (sentence,) = read_results(store.url).stale
    assert "earlier training" in sentence


def test_time_is_that_of_all_attempts(tmp_path: Path) -> None:
    store = finished_run(tmp_path, [group("a")])
    (stage,) = read_results(store.url).sampling
    assert (stage.num_trajectories, stage.elapsed_s, stage.tokens_per_s) == (12, 60.0, 2.5)


def test_results_count_parts_once_and_failures_by_cause(tmp_path: Path) -> None:
    store = finished_run(tmp_path, [group("a")])
    again = {"stage": "rollout", "time_s": 200.0, "name": "rollouts/part-2.parquet"}
    counts = {"num_trajectories": 8, "num_turns": 6, "num_failures": 0, "num_solved": 3}
    store.append_metrics([{**again, **counts, "num_sampled_tokens": 50}])
    results = read_results(store.url)
    (stage,) = results.sampling
    assert (stage.num_trajectories, stage.elapsed_s) == (16, None)  # its attempt was cut off
    assert stage.tokens_per_s == 150 / 60
    (failures,) = results.failures
    assert failures.by_cause == {"grader": 1}
