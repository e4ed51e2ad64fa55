"""Context that is cut, prompts that are held out, and samples that exceed the token budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_ray.errors import StageError
from drift_ray.store import RunStore
from drift_ray.training.data import TrainingData, check_token_budget, load_training_data
from drift_ray.training.held_out import held_out_rows, is_held_out
from tests.unit.training_cases import random_trajectory, write_part

PROMPTS = [f"p{number}" for number in range(40)]


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    """Four parts of ten prompts with two trajectories each; one in ten carries no weight."""
    store = RunStore(str(tmp_path / "run"))
    rng = np.random.default_rng(0)
    for part in range(4):
        prompts = PROMPTS[10 * part : 10 * part + 10]
        trajectories = [random_trajectory(rng, each, index) for each in prompts for index in (0, 1)]
        write_part(store, part, trajectories, [0.0, 0.0, *rng.exponential(size=18)])
    return store


def samples(data: TrainingData) -> list[tuple[list[int], list[bool], float]]:
    edges = zip(data.offsets[:-1], data.offsets[1:], strict=True)
    return [
        (data.token_ids[a:b].tolist(), data.loss_mask[a:b].tolist(), weight)
        for (a, b), weight in zip(edges, data.importance_weight, strict=True)
    ]


@pytest.mark.parametrize("loss_turns", ["last", "all"])
@pytest.mark.parametrize("max_context_tokens", [1, 4, 12, 1000])
def test_old_context_is_cut_and_answers_never(
    store: RunStore, loss_turns: str, max_context_tokens: int
) -> None:
    def load(limit: int | None) -> list[tuple[list[int], list[bool], float]]:
        split = load_training_data(
            store, weighting="drift", loss_turns=loss_turns, max_context_tokens=limit
        )
        return samples(split.train)

    whole, cut = load(None), load(max_context_tokens)
    for (tokens, mask, weight), (kept, kept_mask, kept_weight) in zip(whole, cut, strict=True):
        assert kept_mask.index(True) == min(mask.index(True), max_context_tokens)
        assert kept == tokens[len(tokens) - len(kept) :]
        assert kept_mask == mask[len(mask) - len(kept) :]
        assert sum(kept_mask) == sum(mask)
        assert kept_weight == weight


def test_a_cut_begins_no_earlier_than_a_rendered_history(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path))
    plain = random_trajectory(np.random.default_rng(1))
    last = plain.turns[-1]
    rendered = replace(plain, turns=(replace(last, prompt_start=last.token_start - 3),))
    write_part(store, 0, [rendered], [1.0])
    for limit, num_context in ((2, 2), (3, 3), (5, 3)):
        data = load_training_data(
            store, weighting="drift", loss_turns="last", max_context_tokens=limit
        ).train
        assert data.loss_mask.argmax() == num_context


def test_held_out_prompts_are_whole_and_apart(store: RunStore) -> None:
    everything = load_training_data(store, weighting="drift", loss_turns="last")
    assert everything.held_out is None
    split = load_training_data(
        store, weighting="drift", loss_turns="last", held_out_frac=0.3, seed=7
    )
    assert split.held_out is not None
    expected = [
        is_held_out(PROMPTS[10 * part + row // 2], frac=0.3, seed=7)
        for part in range(4)
        for row in range(2, 20)  # the first two of every part carry no weight
    ]
    aside = [each for each, held in zip(samples(everything.train), expected, strict=True) if held]
    kept = [
        each for each, held in zip(samples(everything.train), expected, strict=True) if not held
    ]
    assert samples(split.held_out) == aside
    assert samples(split.train) == kept
    num_zero = split.train.num_zero_weight + split.held_out.num_zero_weight
    assert num_zero == everything.train.num_zero_weight == 8


@given(
    prompts=st.lists(st.text(min_size=1), min_size=1, max_size=30),
    frac=st.floats(0, 0.999),
    seed=st.integers(0, 2**31 - 1),
    data=st.data(),
)
def test_neither_order_nor_other_prompts_decide(
    prompts: list[str], frac: float, seed: int, data: st.DataObject
) -> None:
    rows = held_out_rows(pa.array(prompts), frac=frac, seed=seed)
    assert rows.tolist() == [is_held_out(each, frac=frac, seed=seed) for each in prompts]
    order = data.draw(st.permutations(range(len(prompts))))
    shuffled = held_out_rows(pa.array([prompts[i] for i in order]), frac=frac, seed=seed)
    assert shuffled.tolist() == rows[list(order)].tolist()


def test_the_share_and_the_seed_count() -> None:
    prompts = pa.array([f"prompt {number}" for number in range(20_000)])
    small, large, other = (
        held_out_rows(prompts, frac=frac, seed=seed)
        for frac, seed in ((0.1, 0), (0.2, 0), (0.1, 1))
    )
    assert small.mean() == pytest.approx(0.1, abs=0.01)
    assert large[small].all()  # a larger share keeps what a smaller one held out
    assert (small & other).mean() == pytest.approx(0.01, abs=0.005)
    assert not held_out_rows(prompts, frac=0.0, seed=0).any()


@pytest.mark.parametrize(
    ("frac", "message"), [(1e-9, "holds out no prompt"), (1 - 1e-9, "leaves no prompt")]
)
def test_a_set_without_a_sample_is_refused(store: RunStore, frac: float, message: str) -> None:
    with pytest.raises(StageError, match=f"held_out_frac={frac} {message}"):
        load_training_data(store, weighting="drift", loss_turns="last", held_out_frac=frac)


def test_a_sample_above_the_token_budget_is_named(store: RunStore) -> None:
    data = load_training_data(store, weighting="drift", loss_turns="last").train
    longest = int(data.lengths.max())
    check_token_budget(data, longest)
    with pytest.raises(StageError, match="more than training") as caught:
        check_token_budget(data, longest - 1)
    assert data.longest is not None
    table = store.read_table(data.longest.part, pa.schema([]))
    row = table.slice(data.longest.row, 1).to_pylist()[0]
    assert len(row["token_ids"]) == longest
    assert f"{data.longest.part}, row {data.longest.row} (prompt '{row['prompt_id']}')" in str(
        caught.value
    )
