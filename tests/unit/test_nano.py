"""The nano reference policy: its noise model, its recipe and the folder that is shipped."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from drift_ray.errors import EXIT_INTERRUPTED
from drift_ray.nano import __main__ as cli
from drift_ray.nano import model_dir
from drift_ray.nano.dialogues import (
    CLOSE,
    END,
    FEEDBACK,
    MAX_TURNS,
    OPEN,
    Reply,
    answer_distribution,
    continuations,
    pieces,
    sample_dialogue,
)
from drift_ray.nano.measure import distance, encode_context, greedy_successes, sampled_contexts
from drift_ray.nano.tokenizer import ROLES, TAGS, build_tokenizer
from drift_ray.nano.train import MicroBatch, Recipe, batches, build_model, train
from drift_ray.tasks.addition import pairs, prompts, split_of
from tests.modelled import LightTokenizer

MIB = 2**20
operand = st.integers(10, 99)
TOKENIZER = build_tokenizer()


@pytest.fixture(scope="module")
def shipped() -> Iterator[tuple[LlamaForCausalLM, PreTrainedTokenizerFast]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield (
        AutoModelForCausalLM.from_pretrained(model_dir()),
        AutoTokenizer.from_pretrained(model_dir()),
    )
    torch.set_num_threads(threads)


# The noise model.


@given(a=operand, b=operand, times=st.integers(0, 4))
def test_answers_are_a_distribution_that_favours_what_was_not_rejected(
    a: int, b: int, times: int
) -> None:
    fresh = answer_distribution(a, b)
    assert math.isclose(sum(fresh.values()), 1)
    assert fresh[str(a + b)] > 0.1
    wrong = next(answer for answer in fresh if answer != str(a + b))
    later = answer_distribution(a, b, (wrong,) * (times + 1))
    earlier = answer_distribution(a, b, (wrong,) * times)
    assert 0 < later[wrong] < earlier[wrong]


def test_it_forgets_the_carry_of_large_sums() -> None:
    odds = answer_distribution(88, 87)
    assert max(odds, key=odds.__getitem__) == "165"
    odds = answer_distribution(81, 82)
    assert max(odds, key=odds.__getitem__) == "163"


@given(a=operand, b=operand, closed=st.booleans())
def test_the_odds_of_the_pieces_multiply_to_those_of_the_answer(
    a: int, b: int, closed: bool
) -> None:
    for answer, expected in answer_distribution(a, b).items():
        p = math.prod(continuations(a, b, (), answer[:i])[digit] for i, digit in enumerate(answer))
        assert math.isclose(p, expected)
        ending = continuations(a, b, (), answer)
        assert ending[CLOSE] > ending[END] > 0


@given(a=operand, b=operand, seed=st.integers(0, 2**32))
def test_a_dialogue_ends_at_the_first_answer_that_counts(a: int, b: int, seed: int) -> None:
    replies = sample_dialogue(a, b, random.Random(seed))
    right = [r.closed and r.answer == str(a + b) for r in replies]
    assert not any(right[:-1])
    assert right[-1] or len(replies) == MAX_TURNS


# The tokenizer.


@given(text=st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_tags_are_text_and_markers_are_not() -> None:
    tags = "".join(TAGS)
    ids = TOKENIZER.encode(f"<|user|>{tags}{END}")
    assert len(ids) == len(TAGS) + 2
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == tags


@given(before=st.text(max_size=20), after=st.text(max_size=20), tag=st.sampled_from(TAGS))
def test_a_tag_parts_what_stands_on_either_side(before: str, after: str, tag: str) -> None:
    apart = TOKENIZER.encode(before + tag) + TOKENIZER.encode(after)
    assert TOKENIZER.encode(before + tag + after) == apart


def test_the_template_renders_what_training_saw() -> None:
    replies = [Reply(answer="75", closed=True), Reply(answer="95", closed=False)]
    messages = [
        {"role": "user", "content": "48+37=?"},
        {"role": "assistant", "content": replies[0].text},
        {"role": "user", "content": FEEDBACK},
        {"role": "assistant", "content": replies[1].text},
    ]
    seen = pieces(48, 37, replies)
    rendered = TOKENIZER.apply_chat_template(messages, tokenize=False)
    assert rendered == "".join(text for text, _ in seen)
    assert all(len(TOKENIZER.encode(text)) == 1 for text, odds in seen if odds)
    prompt = TOKENIZER.apply_chat_template(
        messages[:-1], tokenize=False, add_generation_prompt=True
    )
    assert TOKENIZER.encode(prompt) == encode_context(TOKENIZER, (48, 37, replies[:1]))


def test_modelled_engines_have_the_same_tokenizer() -> None:
    light = LightTokenizer()
    messages = [{"role": role, "content": f"{role} 1+2=?\n"} for role in ROLES]
    rendered = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == light.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    ids = TOKENIZER.encode(rendered, add_special_tokens=False)
    assert light.encode(rendered, add_special_tokens=False) == ids
    for skip in (False, True):
        text = TOKENIZER.decode(ids, skip_special_tokens=skip)
        assert light.decode(ids, skip_special_tokens=skip) == text


@pytest.mark.parametrize("role", [*ROLES, "tool"])
def test_the_template_knows_its_roles(role: str) -> None:
    messages = [{"role": role, "content": "x"}]
    if role in ROLES:
        assert TOKENIZER.apply_chat_template(messages, tokenize=False) == f"<|{role}|>x{END}"
    else:
        with pytest.raises(TemplateError, match="unknown role: tool"):
            TOKENIZER.apply_chat_template(messages, tokenize=False)


# The recipe.


def test_training_never_sees_a_held_out_sum() -> None:
    for batch in (next(batches(TOKENIZER, Recipe(seed=seed))) for seed in range(2)):
        for micro in batch:
            for text in TOKENIZER.batch_decode(micro.token_ids):
                a, b = text.removeprefix("<|user|>").partition("=?")[0].split("+")
                assert split_of(int(a), int(b)) == "train"


def test_targets_are_the_odds_of_the_assistants_tokens() -> None:
    micro: MicroBatch = next(batches(TOKENIZER, Recipe(batch_size=16)))[0]
    assert len(micro.target_odds) == int(micro.is_target.sum())
    torch.testing.assert_close(micro.target_odds.sum(-1), torch.ones(len(micro.target_odds)))
    drawn = micro.token_ids[micro.is_target]
    assert (micro.target_odds.gather(1, drawn[:, None]) > 0).all()
    assert not micro.is_target[micro.token_ids == TOKENIZER.pad_token_id].any()


def test_the_recipe_is_deterministic_and_learns() -> None:
    recipe = Recipe(steps=4, batch_size=8, seed=5)
    losses: list[float] = []
    first = train(TOKENIZER, recipe, lambda step, loss: losses.append(loss))
    again = train(TOKENIZER, recipe).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.state_dict().items())
    assert len(losses) == recipe.steps
    assert losses[-1] < losses[0]


def test_an_interrupted_recipe_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "train", lambda *_: build_model(TOKENIZER))
    monkeypatch.setattr(cli, "write_card", interrupted)
    out = tmp_path / "model"
    out.mkdir()
    (out / "config.json").write_text("old")
    assert cli.main(["--out", str(out), "--steps", "1"]) == EXIT_INTERRUPTED
    assert "as it was" in capsys.readouterr().err
    assert [p.name for p in tmp_path.rglob("*")] == ["model", "config.json"]
    assert (out / "config.json").read_text() == "old"


# The shipped folder.


def test_the_folder_is_small_and_complete() -> None:
    sizes = {path.name: path.stat().st_size for path in model_dir().iterdir()}
    assert sum(sizes.values()) <= 3 * MIB
    assert sizes.keys() >= {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_the_shipped_tokenizer_is_the_recipes(
    shipped: tuple[LlamaForCausalLM, PreTrainedTokenizerFast],
) -> None:
    model, tokenizer = shipped
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert tokenizer.chat_template == TOKENIZER.chat_template
    text = f"<|user|>48+37=?{END}<|assistant|>{OPEN}85{CLOSE}{END}"
    assert tokenizer.encode(text) == TOKENIZER.encode(text)
    assert tokenizer.convert_tokens_to_ids(END) == tokenizer.eos_token_id
    assert model.generation_config is not None
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.vocab_size == len(tokenizer)


def test_the_shipped_model_adds_well_but_not_always(
    shipped: tuple[LlamaForCausalLM, PreTrainedTokenizerFast],
) -> None:
    sums = [tuple(map(int, p.question[:-2].split("+"))) for p in prompts("test", 60)]
    successes = greedy_successes(*shipped, [(a, b) for a, b in sums])
    assert len(successes) == MAX_TURNS
    assert 0.4 < successes[0] / len(sums) < 0.85
    assert successes == sorted(successes)
    assert successes[0] < successes[-1] < len(sums)


@pytest.mark.parametrize("num_replies", [0, 4])
def test_the_shipped_model_converged_to_the_noise_model(
    shipped: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], num_replies: int
) -> None:
    found = distance(*shipped, sampled_contexts(pairs("test")[::40], num_replies))
    assert 0 <= found.kl < 0.1
    assert 0 <= found.total_variation < 0.1
