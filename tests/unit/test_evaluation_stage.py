"""Evaluations are counted, compared and read back: with a pool that plays in this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from drift_ray.cli import main
from drift_ray.config import RunConfig
from drift_ray.config_file import load_config
from drift_ray.errors import ConfigError, DataError, StageError, TaskError
from drift_ray.evaluation import stage
from drift_ray.evaluation.comparison import MCNEMAR, SIGN_FLIP
from drift_ray.evaluation.results import (
    COMPARISON_FILE,
    REFERENCE,
    TRAINED,
    Benchmark,
    EvaluatedModel,
    compare_models,
)
from drift_ray.lineage import claim_run
from drift_ray.pipeline import Pipeline, Stage
from drift_ray.rollout.pool import ReplicaPool
from drift_ray.rollout.work import PolicyRef
from drift_ray.tasks.sources import load_prompts
from tests.unit.fake_pool import FakePool
from tests.unit.scripted import write_config

NUM_SAMPLES = 2
MORE = "evaluation.benchmarks.more={prompts: {source: addition, split: test, num_prompts: 4}}"


def configured(folder: Path, *overrides: str) -> RunConfig:
    settings = [
        "rollout.max_failed_frac=1",
        f"evaluation.num_samples={NUM_SAMPLES}",
        "evaluation.sampling.temperature=1",
    ]
    return load_config(write_config(folder), [*settings, *overrides])


def policies(pipeline: Pipeline) -> dict[str, PolicyRef]:
    return {
        REFERENCE: PolicyRef(digest=pipeline.lineage.reference),
        TRAINED: PolicyRef(digest=pipeline.lineage.model, folder="model"),
    }


def evaluate(
    config: RunConfig,
    model: str,
    *,
    benchmark: str | None = None,
    failing: Sequence[str] = (),
    worse: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate a model; the last trajectories of some prompts fail, others are not solved."""
    pipeline = Pipeline(config)
    claim_run(pipeline.store, config, pipeline.lineage)
    wanted = config.task.test if benchmark is None else config.evaluation.benchmarks[benchmark]
    prompts = load_prompts(getattr(wanted, "prompts", wanted), task="addition", seed=config.seed)
    return stage.run(
        pipeline.store,
        cast(ReplicaPool, FakePool(pipeline.store, failing=failing, unsolved=worse)),
        config,
        pipeline.lineage,
        Benchmark(name=benchmark, prompts=prompts, grader=config.task.grader),
        name=model,
        policy=policies(pipeline)[model],
    )


def prompt_ids(config: RunConfig) -> list[str]:
    prompts = load_prompts(config.task.test, task="addition", seed=config.seed)
    return [prompt.prompt_id for prompt in prompts]


def test_failed_trajectories_are_missing_from_the_metrics(tmp_path: Path) -> None:
    config = configured(tmp_path)
    metrics = evaluate(config, REFERENCE, failing=prompt_ids(config)[:2])
    assert metrics["missing"] == {
        "num_expected": 6,
        "num_missing": 2,
        "failures": {"environment": 2},
    }
    assert (metrics["num_prompts"], metrics["num_trajectories"]) == (3, 4)
    # Of two samples the first is solved; those that failed count as neither.
    assert metrics["success_at"][0]["estimate"] == 0.75
    run = Path(config.run)
    assert json.loads((run / "evaluation/reference/metrics.json").read_text()) == metrics
    assert list(run.glob("evaluation/reference/failures/part-*.parquet"))


def test_failures_of_earlier_settings_are_not_counted(tmp_path: Path) -> None:
    config = configured(tmp_path)
    evaluate(config, REFERENCE, failing=prompt_ids(config))
    other = configured(tmp_path, "evaluation.sampling.max_tokens=9")
    assert evaluate(other, REFERENCE)["missing"]["num_missing"] == 0
    assert not list(Path(config.run).glob("evaluation/reference/failures/part-*.parquet"))


def test_failures_are_forgotten_and_sampled_again(tmp_path: Path) -> None:
    config = configured(tmp_path, MORE)
    pipeline = Pipeline(config)
    metrics = evaluate(config, REFERENCE)
    evaluate(config, TRAINED, failing=prompt_ids(config)[:1])
    evaluate(config, TRAINED, benchmark="more", failing=prompt_ids(config)[:1])
    assert pipeline.forget_failures(Stage.ROLLOUT) == 0
    assert pipeline.forget_failures(Stage.EVALUATE) == 2
    assert pipeline.metrics() == {"addition": {REFERENCE: metrics}}
    assert evaluate(config, TRAINED)["missing"]["num_missing"] == 0
    assert pipeline.forget_failures(Stage.EVALUATE) == 0


def test_a_failure_of_a_lost_replica_that_was_played_again_is_none(tmp_path: Path) -> None:
    config = configured(tmp_path)
    evaluate(config, REFERENCE, failing=prompt_ids(config)[:1])
    (part,) = Path(config.run).glob("evaluation/reference/part-*.parquet")
    part.unlink()  # as if its replica had been lost between the two files
    missing = evaluate(config, REFERENCE)["missing"]
    assert (missing["num_missing"], missing["failures"]) == (0, {})


def test_the_comparison_of_a_run_is_committed_once(tmp_path: Path) -> None:
    config = configured(tmp_path)
    pipeline = Pipeline(config)
    evaluate(config, REFERENCE, worse=prompt_ids(config)[:2])
    assert pipeline.comparisons() == {}
    assert set(pipeline.metrics()["addition"]) == {REFERENCE}
    evaluate(config, TRAINED, worse=prompt_ids(config)[2:])
    found = pipeline.comparisons()["addition"]
    assert (found["baseline"], found["candidate"]) == (REFERENCE, TRAINED)
    assert found["test"] == SIGN_FLIP
    row = found["success_at"][0]
    assert row["won"] == sorted(prompt_ids(config)[:2])
    assert row["lost"] == prompt_ids(config)[2:]
    assert row["difference"] == pytest.approx(0.5 / 3)
    file = Path(config.run) / COMPARISON_FILE
    assert json.loads(file.read_text())["comparisons"] == {"addition": found}
    before = file.stat().st_mtime_ns
    assert pipeline.comparisons() == {"addition": found}
    assert file.stat().st_mtime_ns == before
    evaluate(config, TRAINED)  # other trajectories would be compared
    assert not file.exists()


def test_a_benchmark_has_its_folder_and_leaves_the_task_as_it_is(tmp_path: Path) -> None:
    config = configured(tmp_path)
    evaluate(config, REFERENCE)
    more = configured(tmp_path, MORE)
    pipeline = Pipeline(more)
    lineage, policy = pipeline.lineage, policies(pipeline)[REFERENCE]
    done = {
        name: stage.is_done(pipeline.store, lineage, name, name=REFERENCE, policy=policy)
        for name in (None, "more")
    }
    assert done == {None: True, "more": False}
    metrics = evaluate(more, REFERENCE, benchmark="more")
    assert (metrics["benchmark"], metrics["num_prompts"]) == ("more", 4)
    assert {name: list(each) for name, each in pipeline.metrics().items()} == {
        "addition": [REFERENCE],
        "more": [REFERENCE],
    }
    assert list(Path(config.run).glob("evaluation/reference/more/part-*.parquet"))
    for model, benchmark in ((TRAINED, None), (TRAINED, "more")):
        evaluate(more, model, benchmark=benchmark)
    assert list(pipeline.comparisons()) == ["addition", "more"]


def test_the_grader_of_a_benchmark_is_part_of_its_digest_alone(tmp_path: Path) -> None:
    plain = Pipeline(configured(tmp_path, MORE)).lineage
    other = Pipeline(configured(tmp_path, MORE, "evaluation.benchmarks.more.grader=choice")).lineage
    assert plain.evaluation("p") == other.evaluation("p")
    assert plain.evaluation("p", "more") != other.evaluation("p", "more")
    assert plain.fingerprint == other.fingerprint


def two_runs(tmp_path: Path, *overrides: str) -> tuple[RunConfig, RunConfig]:
    runs = []
    for name, given in (("a", ()), ("b", overrides)):
        config = configured(tmp_path, f"run={tmp_path / name}", "evaluation.num_samples=1", *given)
        worse = prompt_ids(config)[: 2 if name == "a" else 1]
        evaluate(config, TRAINED, worse=worse)
        runs.append(config)
    return runs[0], runs[1]


def test_two_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = two_runs(tmp_path, "training.learning_rate=1e-3")
    assert main(["compare", a.run, f"{b.run}:trained", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["addition"]
    assert found["test"] == MCNEMAR
    assert (found["baseline"], found["candidate"]) == (f"{a.run}:trained", f"{b.run}:trained")
    assert found["success_at"][0]["won"] == prompt_ids(a)[1:2]
    assert main(["compare", a.run, b.run]) == 0
    shown = capsys.readouterr().out
    assert "B - A on 3 prompts of addition" in shown
    assert f"A: {a.run}:trained" in shown.splitlines()
    assert "not only the models differ" not in shown


def test_settings_that_differ_too_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = two_runs(tmp_path, "task.grader=choice", "evaluation.sampling.temperature=0.5")
    assert main(["compare", a.run, b.run]) == 0
    shown = capsys.readouterr().out
    assert "not only the models differ: grader is 'reference' for A, 'choice' for B" in shown
    assert "sampling.temperature is 1.0 for A, 0.5 for B" in shown
    assert shown.count("not only") == 2


def test_runs_with_other_prompts_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = two_runs(tmp_path, "task.test.num_prompts=5")
    assert main(["compare", a.run, b.run]) == TaskError.exit_code
    said = capsys.readouterr().err
    assert f"2 are not shared (0 only with {a.run}:trained, 2 only with {b.run}" in said


def test_what_a_target_names(tmp_path: Path) -> None:
    plain = configured(tmp_path, f"run={tmp_path / 'a'}")
    colon = configured(tmp_path, f"run={tmp_path / 'a:reference'}")
    remote = configured(tmp_path, "run=memory://evaluations/run")
    for config in (plain, colon, remote):
        evaluate(config, TRAINED)
    evaluate(plain, REFERENCE)
    for target, expected in [
        (plain.run, (plain.run, TRAINED)),
        (f"{plain.run}:trained", (plain.run, TRAINED)),
        (colon.run, (colon.run, TRAINED)),
        (f"{colon.run}:trained", (colon.run, TRAINED)),
        (remote.run, (remote.run, TRAINED)),
        (f"{remote.run}:trained", (remote.run, TRAINED)),
    ]:
        found = EvaluatedModel.find(target)
        assert (found.store.url, found.model) == expected


def test_what_is_not_evaluated_is_said(tmp_path: Path) -> None:
    config = configured(tmp_path)
    with pytest.raises(ConfigError, match="There is no run in"):
        EvaluatedModel.find(config.run)
    evaluate(config, TRAINED)
    with pytest.raises(StageError, match="no finished evaluation of a model 'reference'"):
        EvaluatedModel.find(f"{config.run}:reference")
    other = configured(tmp_path, f"run={tmp_path / 'other'}", "task.name=sums")
    evaluate(other, TRAINED)
    with pytest.raises(StageError, match="nothing of the same name: there addition, here sums"):
        compare_models(EvaluatedModel.find(config.run), EvaluatedModel.find(other.run))


def test_trajectories_that_are_gone_are_no_result(tmp_path: Path) -> None:
    config = configured(tmp_path)
    evaluate(config, TRAINED)
    for part in Path(config.run).glob("evaluation/trained/part-*.parquet"):
        part.unlink()
    model = EvaluatedModel.find(config.run)
    with pytest.raises(DataError, match="not the trajectories"):
        compare_models(model, model)


@pytest.mark.parametrize(
    ("override", "code", "said"),
    [
        (MORE.replace("test", "train"), 3, "4 prompts of evaluation.benchmarks.more.prompts are"),
        ("evaluation.num_samples=2", 2, "num_samples 2 at temperature 0"),
        (MORE.replace("more", "failures"), 2, "named failures"),
        (MORE.replace("more", "addition"), 2, "has the name of the task"),
        (MORE.replace("more", "a/b"), 2, "a/b"),
        (MORE.replace("num_prompts", "num_promts"), 2, "Did you mean 'num_prompts'?"),
        (MORE.replace("}}", "}, grader: mth}"), 2, "mth"),
    ],
)
def test_mistakes_are_found_before_anything_starts(
    tmp_path: Path, override: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(write_config(tmp_path)), override]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
