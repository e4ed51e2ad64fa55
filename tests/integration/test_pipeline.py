"""The whole pipeline with real vLLM, Ray Data and Ray Train, small enough for two cores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from drift_ray.cli import main
from drift_ray.pipeline import Pipeline, Stage
from tests.integration.small_run import (
    DEMO,
    GROUP_SIZE,
    NUM_TEST,
    NUM_TRAIN,
    ONE_BY_ONE,
    SMALL,
    read_parts,
    rollouts,
    small_config,
)

pytestmark = pytest.mark.usefixtures("ray_session")

NOTES = ("run.json", "metrics.jsonl", "outcome.json")
"""What every command may write, also one that finds all of it done."""


def evaluation(run: Path) -> dict[str, dict[str, Any]]:
    return {
        name: json.loads((run / "evaluation" / name / "metrics.json").read_text())
        for name in ("reference", "trained")
    }


def modified(run: Path) -> dict[str, int]:
    return {
        str(path.relative_to(run)): path.stat().st_mtime_ns
        for path in run.rglob("*")
        if path.is_file() and path.name not in NOTES
    }


def test_rollouts_are_whole_groups_of_really_sampled_tokens(finished: Path) -> None:
    table = rollouts(finished)
    assert table.num_rows == NUM_TRAIN * GROUP_SIZE
    for path in finished.glob("rollouts/part-*.parquet"):
        part = pq.read_table(path)
        counts = part.group_by("prompt_id").aggregate([("trajectory_index", "count_distinct")])
        assert set(counts["trajectory_index_count_distinct"].to_pylist()) == {GROUP_SIZE}
    for row in table.slice(0, 20).to_pylist():
        sampled = np.zeros(len(row["token_ids"]), bool)
        for turn in row["turns"]:
            sampled[turn["token_start"] : turn["token_end"]] = True
        assert [logprob is not None for logprob in row["logprobs"]] == sampled.tolist()
        assert all(-50 < logprob <= 0 for logprob in row["logprobs"] if logprob is not None)


def test_weights_lie_beside_their_parts_row_by_row(finished: Path) -> None:
    parts = sorted(path.name for path in finished.glob("rollouts/part-*.parquet"))
    assert parts == sorted(path.name for path in finished.glob("weights/drift/part-*.parquet"))
    for name in parts:
        part = pq.read_table(finished / "rollouts" / name)
        weights = pq.read_table(finished / "weights/drift" / name)
        for key in ("prompt_id", "trajectory_index"):
            assert part[key].equals(weights[key])
        means = weights.group_by("prompt_id").aggregate([("importance_weight", "mean")])
        np.testing.assert_allclose(means["importance_weight_mean"].to_numpy(), 1.0, rtol=1e-12)
    summary = json.loads((finished / "weights/drift/summary.json").read_text())
    assert summary["num_trajectories"] == NUM_TRAIN * GROUP_SIZE


def test_transformers_and_vllm_agree_on_the_exported_model(finished: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    rows = read_parts(finished, "evaluation/trained").slice(0, 30).to_pylist()
    for row in rows:
        turn = row["turns"][0]
        start, end = turn["token_start"], turn["token_end"]
        prompt = torch.tensor([row["token_ids"][:start]])
        expected = row["token_ids"][start:end]  # what vLLM sampled greedily
        found = model.generate(prompt, max_new_tokens=end - start, do_sample=False)
        assert found[0, start:].tolist() == expected
        assert row["question"] in tokenizer.decode(prompt[0])
    card = (finished / "model/README.md").read_text()
    summary = json.loads((finished / "model/drift_ray.json").read_text())
    assert f"`{summary['digest']}`" in card
    assert str(finished) not in card


def test_held_out_prompts_are_never_trained_on(finished: Path) -> None:
    def questions(pattern: str) -> set[frozenset[str]]:
        tables = map(pq.read_table, finished.glob(pattern))
        texts = [text for table in tables for text in table["question"].to_pylist()]
        return {frozenset(text.removesuffix("=?").split("+")) for text in texts}

    trained = questions("rollouts/part-*.parquet")
    held_out = questions("evaluation/*/part-*.parquet")
    assert len(held_out) > NUM_TEST // 2
    assert trained.isdisjoint(held_out)


def test_both_models_are_evaluated_on_all_held_out_prompts(finished: Path) -> None:
    metrics = evaluation(finished)
    for each in metrics.values():
        assert each["num_prompts"] == NUM_TEST
        assert all(row["low"] <= row["estimate"] <= row["high"] for row in each["success_at"])
    assert metrics["reference"]["policy"] != metrics["trained"]["policy"]


def test_the_models_are_compared_prompt_by_prompt(finished: Path) -> None:
    metrics = evaluation(finished)
    comparison = json.loads((finished / "evaluation/comparison.json").read_text())
    found = comparison["comparisons"]["addition"]
    assert (found["test"], found["num_prompts"]) == ("exact McNemar", NUM_TEST)
    for row, before, after in zip(
        found["success_at"],
        metrics["reference"]["success_at"],
        metrics["trained"]["success_at"],
        strict=True,
    ):
        assert row["difference"] == pytest.approx(after["estimate"] - before["estimate"])
        assert 0 < row["low"] <= row["difference"] <= row["high"]
        assert row["p_value"] < 0.01
        assert row["num_won"] - row["num_lost"] == after["num_correct"] - before["num_correct"]


def test_a_benchmark_more_is_all_that_is_evaluated(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    before = modified(run / "evaluation/reference")
    few = "{prompts: {source: addition, split: test, num_prompts: 30}, grader: numeric}"
    settings = [f"run={run}", *SMALL, f"evaluation.benchmarks.few={few}", *ONE_BY_ONE]
    assert main(["evaluate", str(DEMO), *settings]) == 0
    assert before.items() <= modified(run / "evaluation/reference").items()
    for model in ("reference", "trained"):
        metrics = json.loads((run / "evaluation" / model / "few/metrics.json").read_text())
        assert (metrics["num_prompts"], metrics["settings"]["grader"]) == (30, "numeric")
        assert read_parts(run, f"evaluation/{model}/few")["task"].unique().to_pylist() == ["few"]
    comparison = json.loads((run / "evaluation/comparison.json").read_text())
    assert list(comparison["comparisons"]) == ["addition", "few"]
    assert "few (30)" in capsys.readouterr().out


@pytest.mark.parametrize("k", [1, 5])
def test_training_improves_held_out_success(finished: Path, k: int) -> None:
    before, after = (
        next(row for row in metrics["success_at"] if row["k"] == k)
        for metrics in evaluation(finished).values()
    )
    assert after["low"] > before["high"]  # of their 95 % intervals


def test_vllm_sampled_the_trained_model_with_the_weights_that_were_exported(
    finished: Path,
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(finished / "model", dtype=torch.float32)
    part = next(iter(sorted(finished.glob("evaluation/trained/part-*.parquet"))))
    for row in pq.read_table(part).slice(0, 4).to_pylist():
        with torch.no_grad():
            logits = model(torch.tensor([row["token_ids"]])).logits[0]
        logprobs = torch.log_softmax(logits, -1)[:-1]
        chosen = logprobs.gather(1, torch.tensor(row["token_ids"][1:])[:, None])[:, 0]
        for ours, vllm in zip(chosen.tolist(), row["logprobs"][1:], strict=True):
            if vllm is not None:
                assert ours == pytest.approx(vllm, abs=1e-4)


def test_a_finished_run_is_not_touched_again(finished: Path) -> None:
    before = modified(finished)
    Pipeline(small_config(finished)).run()
    assert modified(finished) == before


def test_another_beta_redoes_the_weights_and_leaves_the_rollouts(finished: Path) -> None:
    before = modified(finished)
    Pipeline(small_config(finished, "weighting.beta=0.3", "weighting.name=softer")).run(
        {Stage.WEIGH}
    )
    after = modified(finished)
    assert before.items() <= after.items()
    assert any(name.startswith("weights/softer/part-") for name in after)


@pytest.mark.parametrize("command", ["weigh", "train", "run"])
def test_a_gate_keeps_weights_from_being_trained_on(
    finished: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    gate = ["weighting.gate.min_ess_frac=1", "training.learning_rate=1e-3"]
    before = modified(finished)
    assert main([command, str(DEMO), f"run={finished}", *SMALL, *gate]) == 8
    said = capsys.readouterr().err
    assert "weighting.gate.min_ess_frac is 1: raise weighting.beta" in said
    assert modified(finished) == before


def test_a_sweep_of_a_run_directory_commits_no_weights(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = modified(finished)
    assert main(["weigh", str(finished), "--beta", "0.05,0.5"]) == 0
    assert "0.05" in capsys.readouterr().out
    after = modified(finished)
    assert before.items() <= after.items()
    assert after.keys() - before.keys() == {"weights/sweep.json"}


def test_a_truncated_part_is_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(finished / "rollouts", run / "rollouts")
    shutil.copy(finished / "run.json", run)
    part = sorted(run.glob("rollouts/part-*.parquet"))[3]
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    code = main(["weigh", str(DEMO), f"run={run}", *SMALL])
    assert code == 5
    assert str(part) in capsys.readouterr().err
    assert not (run / "weights").exists()
