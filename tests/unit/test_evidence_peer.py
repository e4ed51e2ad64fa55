"""TRL's GRPO as a peer: what it is given to learn from, and that it is tuned as ours is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from drift_ray.config_file import load_config
from drift_ray.models import resolve_model
from drift_ray.types import Prompt
from tests.benchmarks.evidence import peer
from tests.benchmarks.evidence.plan import FULL, PEER, TASKS, tuning
from tests.benchmarks.evidence.trl_peer import Clock, Rollout

CONFIG = load_config("jobs/configs/on_policy.yaml")
PROMPT = Prompt(prompt_id="p", task="addition", question="12+34=?", gold="46")


class Parrot:
    """Says what it was told to, turn after turn: one text a trajectory that goes on."""

    def __init__(self, tokenizer: Any, turns: list[list[str]]) -> None:
        self._tokenizer, self._turns = tokenizer, iter(turns)
        self.heard: list[list[str]] = []

    def generate(self, *, input_ids: Any, attention_mask: Any, **_: Any) -> Any:
        self.heard.append(
            [
                self._tokenizer.decode(row[mask.bool()])
                for row, mask in zip(input_ids, attention_mask, strict=True)
            ]
        )
        end, pad = self._tokenizer.eos_token_id, self._tokenizer.pad_token_id
        said = [
            [*self._tokenizer.encode(text, add_special_tokens=False), end]
            for text in next(self._turns)
        ]
        width = max(map(len, said))
        rows = torch.tensor([[*row, *[pad] * (width - len(row))] for row in said])
        return torch.cat([input_ids, rows], dim=1)


def test_trl_gets_whole_episodes_and_only_what_was_sampled_carries_loss() -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("builtin:nano"))
    model = Parrot(tokenizer, [["46</answer>", "47</answer>"], ["46</answer>"]])
    first, second = Rollout(CONFIG, [PROMPT], tokenizer)(model, [PROMPT.question] * 2)
    assert [first.value, second.value] == [1.0, CONFIG.weighting.gamma]
    assert first.prompt_ids == second.prompt_ids
    assert "12+34=?" in model.heard[0][0]
    for each, said in ((first, ["46"]), (second, ["47", "46"])):
        assert len(each.completion_ids) == len(each.env_mask)
        sampled = [t for t, own in zip(each.completion_ids, each.env_mask, strict=True) if own]
        text = tokenizer.decode(sampled, skip_special_tokens=True).replace(" ", "")
        assert text == "".join(f"{answer}</answer>" for answer in said)
        assert each.completion_ids[-1] == tokenizer.eos_token_id
    # What it hears at the second turn is what TRL computes the loss of it from.
    before = [*second.prompt_ids, *second.completion_ids[: -sum(first.env_mask)]]
    assert model.heard[1] == [tokenizer.decode(before)]
    assert "think again" in model.heard[1][0]


def test_a_trajectory_that_never_succeeds_is_worth_nothing() -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("builtin:nano"))
    model = Parrot(tokenizer, [["47</answer>"]] * 5)
    (found,) = Rollout(CONFIG, [PROMPT], tokenizer)(model, [PROMPT.question])
    assert found.value == 0.0
    assert len(model.heard) == CONFIG.task.environment.max_turns


def test_the_peer_is_tuned_and_run_as_on_policy_rl_is() -> None:
    ours = [each for each in tuning(TASKS[0], FULL) if each.method == peer.ALIKE]
    trials = peer.plan(FULL)
    told = [(e.settings, e.seed, e.prompts, e.num_rounds) for e in trials]
    assert told == [(e.settings, e.seed, e.prompts, e.num_rounds) for e in ours]
    assert {each.method for each in trials} == {PEER}
    finals = peer.plan(FULL, trials[1].settings)
    assert [each.seed for each in finals] == [*FULL.seeds]
    assert {each.checkpoints for each in finals} == {FULL.checkpoints}
    assert all(dict(each.settings) == dict(trials[1].settings) for each in finals)
    assert peer.plan(replace(FULL, seeds=(5,)), {})[0].seed == 5


def test_records_of_the_peer_are_found_where_it_was_run(tmp_path: Path) -> None:
    assert peer.known(tmp_path, "addition", FULL) == []
    file = peer.records_file(tmp_path, FULL)
    file.parent.mkdir()
    file.write_text(json.dumps([{"method": PEER}]))
    assert peer.known(tmp_path, "addition", FULL) == [{"method": PEER}]
    assert peer.known(tmp_path, "chain_sum", FULL) == []
    # Tuned with other trials than the methods beside it.
    assert peer.known(tmp_path, "addition", replace(FULL, num_trials=1)) == []


def test_rounds_cost_what_is_between_their_beginning_and_end() -> None:
    clock = Clock()
    with clock.sampling():
        sum(range(1000))
    clock.end_round()
    clock.start()
    clock.end_round()
    first, second = clock.rounds
    assert first["sampling_cpu_s"] > 0.0 == second["sampling_cpu_s"]
    assert all(value >= 0.0 for each in clock.rounds for value in each.values())
