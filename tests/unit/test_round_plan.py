"""Rounds as planned: whose prompts, whose policy, and what a changed setting changes."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.config_file import load_config
from drift_ray.errors import ConfigError, FingerprintError, StageError
from drift_ray.lineage import Lineage, claim_run, trace
from drift_ray.pipeline import Pipeline, Stage
from drift_ray.round_plan import Round, plan_rounds, positions_of, round_seed
from drift_ray.store import RunStore
from drift_ray.tasks.prompts import PromptSet
from tests.unit.scripted import prompts, run_config, write_config

PROMPTS = PromptSet.of(prompts(["1"] * 10), source="scripted")
THREE = ("rounds.num_rounds=3", "rounds.prompts_per_round=4")


def base(folder: Path, *overrides: str) -> Lineage:
    test = PromptSet.of(prompts(["2"]), source="scripted")
    return trace(run_config(folder, *overrides), PROMPTS, test)


def planned(folder: Path, *overrides: str) -> list[Round]:
    config = run_config(folder, *THREE, *overrides)
    return plan_rounds(config, base(folder, *THREE, *overrides), len(PROMPTS))


@given(
    num_prompts=st.integers(1, 40),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**31 - 1),
    epoch=st.integers(0, 3),
)
def test_an_epoch_is_cut_into_rounds_without_repeats(
    num_prompts: int, share: float, seed: int, epoch: int
) -> None:
    per_round = max(1, round(share * num_prompts))
    per_epoch = num_prompts // per_round
    first = epoch * per_epoch + 1
    rounds = [
        positions_of(number, num_prompts, per_round, seed=seed)
        for number in range(first, first + per_epoch)
    ]
    everything = np.concatenate(rounds)
    assert {len(each) for each in rounds} == {per_round}
    assert len(np.unique(everything)) == len(everything)
    assert everything.min() >= 0
    assert everything.max() < num_prompts
    assert all(np.all(np.diff(each) > 0) for each in rounds)


def test_epochs_differ_and_so_do_the_seeds_of_rounds() -> None:
    first, again = (positions_of(number, 100, 50, seed=3) for number in (1, 3))
    assert set(first.tolist()) != set(again.tolist())
    seeds = {round_seed(seed, number) for seed in range(3) for number in range(1, 50)}
    assert len(seeds) == 3 * 49


def test_every_round_samples_from_the_policy_before(tmp_path: Path) -> None:
    rounds, before = planned(tmp_path), base(tmp_path)
    assert [each.folder for each in rounds] == ["rounds/001", "rounds/002", "rounds/003"]
    assert [each.sampler_folder for each in rounds] == [
        None,
        "rounds/001/model",
        "rounds/002/model",
    ]
    assert rounds[0].lineage.reference == before.reference
    for one, two in pairwise(rounds):
        assert two.lineage.reference == one.lineage.model
    digests = [
        getattr(each.lineage, name) for each in rounds for name in ("rollouts", "weights", "model")
    ]
    assert len(set(digests)) == len(digests)
    chosen = rounds[1].prompts(PROMPTS)
    assert [each.prompt_id for each in chosen] == [f"p{i}" for i in rounds[1].positions]


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("training.learning_rate=1e-3", "training.learning_rate"),
        ("weighting.gamma=0.5", "weighting.gamma"),
        ("rounds.optimizer=reset", "rounds.optimizer"),
    ],
)
def test_what_shaped_the_sampler_is_named(tmp_path: Path, override: str, field: str) -> None:
    before, after = planned(tmp_path), planned(tmp_path, override)
    # The reference policy samples the first round, whatever is learned from it.
    assert before[0].lineage.rollouts == after[0].lineage.rollouts
    assert before[0].lineage.model != after[0].lineage.model
    store = RunStore(str(tmp_path / "run")).subrun("rounds/002")
    config = run_config(tmp_path)
    claim_run(store, config, before[1].lineage)
    store.write_bytes("rollouts/part-0.parquet", b"")
    with pytest.raises(FingerprintError, match=re.escape(field)):
        claim_run(store, config, after[1].lineage)


def test_how_the_work_is_spread_changes_nothing(tmp_path: Path) -> None:
    spread = ("training.num_workers=1", "rounds.keep_policies=9", "replicas.num_replicas=1")
    before, after = planned(tmp_path), planned(tmp_path, *spread)
    assert [each.lineage for each in before] == [each.lineage for each in after]


@pytest.mark.parametrize(("wanted", "number"), [("4", 4), ("0.3", 3), ("1.0", 10), ("0.001", 1)])
def test_a_number_of_prompts_or_a_share(tmp_path: Path, wanted: str, number: int) -> None:
    rounds = planned(tmp_path, f"rounds.prompts_per_round={wanted}")
    assert {len(each.positions) for each in rounds} == {number}


def test_more_prompts_than_there_are_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prompts_per_round is 11, but .* 10 prompts"):
        planned(tmp_path, "rounds.prompts_per_round=11")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("weighting.beta={kl: 0.5}", "weighting.beta"),
        ("weighting.gate={min_ess_frac: 0.2}", "weighting.gate"),
        ("weighting.verdicts=math", "weighting.verdicts"),
        ("training.held_out_frac=0.1", "training.held_out_frac"),
        ("pipeline.overlap=true", "pipeline.overlap"),
        (
            "replicas.engine={kind: openai, urls: [http://x], model: m, max_model_len: 9}",
            "replicas.engine",
        ),
    ],
)
def test_what_does_not_go_together_with_rounds(tmp_path: Path, override: str, named: str) -> None:
    path = write_config(tmp_path)
    with pytest.raises(ConfigError, match=f"rounds.num_rounds 2 does not .*{named}"):
        load_config(path, [override, "rounds.num_rounds=2"])
    load_config(path, [override])
    load_config(path, ["weighting.beta={kl: 0.5, per: group}", "rounds.num_rounds=2"])


def test_one_round_is_a_run_as_ever(tmp_path: Path) -> None:
    plain = Pipeline(run_config(tmp_path))
    assert plain.inputs.rounds == []
    one = Pipeline(run_config(tmp_path, "rounds={num_rounds: 1, prompts_per_round: 1}"))
    assert one.lineage == plain.lineage
    many = Pipeline(run_config(tmp_path, "rounds={num_rounds: 2, prompts_per_round: 1}"))
    assert many.lineage.model == many.inputs.rounds[-1].lineage.model
    in_rounds = {"rounds.prompts_per_round": "1"}
    assert many.lineage.fingerprint == plain.lineage.fingerprint | in_rounds


def test_stages_alone_are_refused(tmp_path: Path) -> None:
    pipeline = Pipeline(run_config(tmp_path, "rounds={num_rounds: 2, prompts_per_round: 1}"))
    for stage in (Stage.ROLLOUT, Stage.WEIGH, Stage.TRAIN):
        with pytest.raises(StageError, match=r"rounds\.num_rounds 2"):
            pipeline.run({stage})
    with pytest.raises(StageError, match=r"rounds\.num_rounds 2"):
        pipeline.forget_failures(Stage.ROLLOUT)
    with pytest.raises(StageError, match=r"rounds\.num_rounds 2"):
        pipeline.topup(below_ess=0.1, budget=None)
