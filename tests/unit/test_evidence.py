"""The evidence: its plan, what is made of its records, its tables and its pupil."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from drift_ray.config_file import load_config
from drift_ray.nano import model_dir
from drift_ray.nano.tokenizer import build_tokenizer
from drift_ray.rollout.work import Play, PolicyRef
from tests.benchmarks.evidence import pupil
from tests.benchmarks.evidence.collect import choose, collect, compare, cost_to_reach
from tests.benchmarks.evidence.page import section, write_page
from tests.benchmarks.evidence.plan import (
    DRIFT,
    FULL,
    MORE,
    PEER,
    SMOKE,
    TASKS,
    TEST,
    TRAIN,
    VALIDATION,
    ablations,
    finals,
    methods,
    tuning,
)
from tests.benchmarks.evidence.plots import plot
from tests.benchmarks.evidence.tables import BEGIN, END, insert, markdown
from tests.benchmarks.evidence.tasks import prompt_file, start, write_prompts

CONFIG = load_config("jobs/configs/demo.yaml")


def point(turns: dict[str, list[int]], *, cpu_s: float = 1.0, number: int | None = None) -> Any:
    evaluation = {"first_success_turn": turns, "repeated_answers": {"num": 1, "num_turns": 4}}
    cost = dict.fromkeys(
        ("num_trajectories", "num_sampled_tokens", "sampling_s", "training_s"), 10.0
    )
    return {
        "round": number,
        "cost": {**cost, "sampling_cpu_s": cpu_s, "training_cpu_s": cpu_s},
        "greedy": evaluation,
        "sampled": evaluation,
        "kl": {"mean": 0.5, "std_error": 0.1},
    }


def record(method: str, points: list[Any], **changes: Any) -> dict[str, Any]:
    known = {"task": "addition", "phase": "final", "variant": "best", "seed": 0, "settings": {}}
    return {**known, "method": method, "wall_s": 2.0, "points": points, **changes}


GOOD, HALF = {"a": [1, 2], "b": [1, 1]}, {"a": [0, 0], "b": [1, 5]}


@pytest.mark.parametrize("scale", [FULL, SMOKE])
def test_every_experiment_is_a_valid_run_with_a_folder_of_its_own(scale: Any) -> None:
    best = {each.name: each.trials[0] for each in methods(scale)}
    planned = [
        each
        for task in TASKS
        for each in (
            *tuning(task, scale),
            *finals(task, scale, best),
            *ablations(task, scale, best),
        )
    ]
    folders = Counter((each.task, each.folder) for each in planned)
    assert max(folders.values()) == 1
    others = finals(TASKS[0], scale, {name: {"seed": 1} for name in best})
    assert not {each.folder for each in others if each.num_rounds} & {f for _, f in folders}
    for each in planned:
        load_config(each.config, [f"{k}={json.dumps(v)}" for k, v in each.settings.items()])


def test_methods_are_tuned_alike_and_on_validation_prompts_alone() -> None:
    trials = tuning(TASKS[0], FULL)
    assert set(Counter(each.method for each in trials).values()) == {FULL.num_trials}
    assert {each.prompts for each in trials} == {VALIDATION}
    best = {each.name: each.trials[0] for each in methods(FULL)}
    assert {each.prompts for each in finals(TASKS[0], FULL, best)} == {TEST}
    assert not {each.seed for each in trials} & set(FULL.seeds)


def test_prompts_of_all_kinds_share_no_question_and_other_sizes_are_refused(tmp_path: Path) -> None:
    write_prompts(TASKS[0], tmp_path, SMOKE)
    kinds = [
        {json.loads(line)["question"] for line in prompt_file(tmp_path, kind).open()}
        for kind in (TRAIN, VALIDATION, TEST)
    ]
    assert [len(each) for each in kinds] == [
        SMOKE.num_train,
        SMOKE.num_validation,
        SMOKE.num_test,
    ]
    assert len(set.union(*kinds)) == sum(map(len, kinds))
    more = {json.loads(line)["question"] for line in prompt_file(tmp_path, MORE).open()}
    assert len(more) == SMOKE.num_more
    assert more & set.union(*kinds) == kinds[0]
    write_prompts(TASKS[0], tmp_path, SMOKE)
    with pytest.raises(SystemExit, match="other sizes"):
        write_prompts(TASKS[0], tmp_path, FULL)


def test_choose_takes_the_best_trial_and_the_first_of_equals() -> None:
    trials = [
        record(DRIFT, [point(HALF)], settings={"n": 1}),
        record(DRIFT, [point(GOOD)], settings={"n": 2}),
        record(DRIFT, [point(GOOD)], settings={"n": 3}),
    ]
    assert choose(trials) == {DRIFT: {"n": 2}}
    sooner = {prompt: [min(turn, 1) for turn in turns] for prompt, turns in GOOD.items()}
    assert choose([*trials, record(DRIFT, [point(sooner)], settings={"n": 4})]) == {DRIFT: {"n": 4}}


def test_comparison_pairs_seeds_and_counts_a_prompt_once() -> None:
    own = [record("sft", [point(HALF)], seed=seed) for seed in (0, 1)]
    drift = [record(DRIFT, [point(GOOD)], seed=seed) for seed in (1, 0, 2)]
    last = compare(own, drift)["sampled"][-1]
    assert last["difference"] == pytest.approx(-0.5)
    assert last["low"] < -0.5 < last["high"]
    assert compare(drift, drift)["greedy"][0]["difference"] == 0.0


def test_cost_to_reach_is_that_of_the_first_policy_as_good() -> None:
    drift = [record(DRIFT, [point(GOOD, cpu_s=5.0)])]
    points = [
        point(HALF, cpu_s=10.0, number=1),
        point(GOOD, cpu_s=20.0, number=2),
        point(GOOD, cpu_s=30.0),
    ]
    (found,) = cost_to_reach([record("on_policy", points)], drift)
    assert (found["cpu_s"], found["ratio"]) == (40.0, 4.0)
    (never,) = cost_to_reach([record("sft", [point(HALF)])], drift)
    assert never["cpu_s"] is None


def results() -> dict[str, Any]:
    records = [
        record("reference", [point(HALF, cpu_s=0.0)]),
        record(DRIFT, [point(GOOD)]),
        record("on_policy", [point(HALF, number=1), point(GOOD, cpu_s=9.0)]),
        record(PEER, [point(HALF)]),
        record(DRIFT, [point(HALF)], phase="ablation", variant="beta_1"),
    ]
    return {"tasks": collect(records), "date": "2026-01-01", "commit": "abc"}


def test_results_become_tables_and_survive_json() -> None:
    found = results()
    text = markdown(json.loads(json.dumps(found)))
    assert "| on-policy RL | 0.750 [" in text
    assert "| TRL's GRPO | 0.250 [" in text
    assert "9.0 x (1 of 1 seeds)" in text
    assert "| beta 1 |" in text
    assert "`abc`" in text
    assert len(found["tasks"]["addition"]["methods"]["on_policy"]["curve"]) == 2


def test_the_page_tells_all_of_it_in_one_file(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    write_page(json.loads(json.dumps({**results(), "duration_s": 90.0})), file)
    text = re.sub(r"<[^>]*>", " ", page := file.read_text())
    for said in (
        "abc",
        "90.0 s",
        "success@3",
        "on-policy RL",
        "TRL&#39;s GRPO",
        "beta 1",
        "0.11 ×",
        "18.0 s, 9.0 ×",
    ):
        assert said in text
    assert page.count("<svg") == 4
    assert not re.findall(r'(?:src|href)="(?!#|data:,")[^"]*"', page)
    once = file.read_bytes()
    write_page({**results(), "duration_s": 90.0}, file)
    assert file.read_bytes() == once


@pytest.mark.parametrize(
    ("drift", "rival", "cost", "verdicts"),
    [
        (GOOD, HALF, 9.0, ("holds", "holds", "not decided")),
        (HALF, GOOD, 1.0, ("does not hold", "does not hold", "not decided")),
    ],
)
def test_claims_are_judged_by_the_numbers(
    drift: Any, rival: Any, cost: float, verdicts: tuple[str, ...]
) -> None:
    many = [
        {f"{name}{number}": turns for name, turns in each.items() for number in range(40)}
        for each in (drift, rival)
    ]
    records = [
        record(DRIFT, [point(many[0])]),
        record("on_policy", [point(many[1], cpu_s=cost)]),
        record("sft_successes", [point(many[0])]),
    ]
    claims = section("addition", collect(records)["addition"]).tables[0]
    assert claims.title == "What was claimed"
    assert tuple(row[1].partition(":")[0] for row in claims.rows) == verdicts


def test_a_page_of_the_reference_policy_alone_claims_nothing(tmp_path: Path) -> None:
    found = section("addition", collect([record("reference", [point(HALF)])])["addition"])
    assert not found.tiles
    assert "What was claimed" not in {table.title for table in found.tables}


def test_plots_are_the_same_for_the_same_results(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        plot("addition", results()["tasks"]["addition"]["methods"], tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_section_takes_the_place_of_the_one_before() -> None:
    readme = f"above\n{BEGIN}\nold\n{END}\nbelow\n"
    once = insert(readme, "new\n")
    assert once == f"above\n{BEGIN}\nnew\n{END}\nbelow\n"
    assert insert(once, "new") == once
    with pytest.raises(ValueError, match="needs a line"):
        insert("no markers", "new")


def test_a_pool_for_a_folder_reads_and_writes_there() -> None:
    play = Play(
        group_size=2,
        policy=PolicyRef(digest="d", folder="model"),
        environment=CONFIG.task.environment,
        grader="reference",
        sampling=CONFIG.rollout.sampling,
        max_attempts=1,
        seed=0,
        subrun="rounds/001",
    )
    inner = play.within("final/drift")
    assert inner.subrun == "final/drift/rounds/001"
    assert inner.policy.folder == "final/drift/model"


def test_the_pupil_errs_and_its_odds_are_those_of_its_dialogues() -> None:
    question = pupil.QUESTION.format(15, "-", 43)
    odds = pupil.answers(question)
    assert sum(odds.values()) == pytest.approx(1.0)
    assert 0.4 < odds["-28"] < 0.7
    assert pupil.answers(question, ["-28"] * 5)["-28"] < odds["-28"]
    encode = build_tokenizer(pupil.WORDS).encode
    rng = random.Random(0)
    for _ in range(50):
        for piece, following in pupil.dialogue(question, "-28", rng):
            if following is not None:
                assert sum(following.values()) == pytest.approx(1.0)
                assert following[piece] > 0
                assert all(len(encode(each)) == 1 for each in following)


def test_teaching_begins_with_what_the_nano_model_knows() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = start()
    nano = AutoModelForCausalLM.from_pretrained(model_dir())
    shared = "<answer>84</answer>"
    rows = [
        each.get_input_embeddings()(torch.tensor(words.encode(shared)))
        for each, words in (
            (model, tokenizer),
            (nano, AutoTokenizer.from_pretrained(model_dir())),
        )
    ]
    torch.testing.assert_close(*rows, rtol=0, atol=0)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert len(model.lm_head.weight) == len(tokenizer) > len(nano.lm_head.weight)
