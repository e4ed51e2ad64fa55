"""Two models on the same prompts: what differs, and whether chance would do as much.

Both models meet every prompt, so prompts are compared one by one: how hard a prompt is drops out,
and the difference is known far better than either success rate.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from drift_ray.errors import TaskError
from drift_ray.evaluation.intervals import difference_interval

MCNEMAR = "exact McNemar"
SIGN_FLIP = "sign-flip permutation"
OUTCOME_COLUMNS = ["prompt_id", "question", "gold", "first_success_turn"]

_NUM_PERMUTATIONS = 9_999
_SEED = 0
_CHUNK_SIGNS = 1 << 22
"""Random signs held at once."""
_NUM_EXAMPLES = 3

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcomes:
    """What one model made of each of P prompts."""

    name: str
    """Of the model, as tables and messages show it."""
    prompt_ids: npt.NDArray[np.object_]
    """Shape ``[P]``, ascending; also prompts of which every trajectory failed."""
    content: Mapping[str, tuple[str, str]]
    """Question and gold by prompt id, where a trajectory tells them."""
    num_samples: Ints
    """Shape ``[P]``: trajectories that did not fail."""
    num_solved: Ints
    """Shape ``[P, max_turns]``: how many of them were solved within 1, 2, … turns."""

    @classmethod
    def of(
        cls, table: pa.Table, *, name: str, max_turns: int, failed_prompt_ids: Iterable[str] = ()
    ) -> Outcomes:
        """Count the outcomes of trajectories.

        Args:
            table: Columns :data:`OUTCOME_COLUMNS` of the trajectory schema.
            name: Of the model.
            max_turns: The turns to count; later ones are left out.
            failed_prompt_ids: Prompts of trajectories that failed; they count as no sample.
        """
        ids = table["prompt_id"].to_numpy()
        known = np.concatenate([ids, np.array(list(failed_prompt_ids), np.object_)])
        prompt_ids, codes = np.unique(known, return_inverse=True)
        codes, num_prompts = codes[: len(ids)], len(prompt_ids)
        first = table["first_success_turn"].fill_null(max_turns + 1).to_numpy()
        solved_at = np.zeros((num_prompts, max_turns + 2), np.int64)
        np.add.at(solved_at, (codes, np.minimum(first, max_turns + 1)), 1)
        content = zip(table["question"].to_pylist(), table["gold"].to_pylist(), strict=True)
        return cls(
            name=name,
            prompt_ids=prompt_ids,
            content=dict(zip(ids.tolist(), content, strict=True)),
            num_samples=np.bincount(codes, minlength=num_prompts),
            num_solved=np.cumsum(solved_at[:, 1 : max_turns + 1], axis=1),
        )


def compare(baseline: Outcomes, candidate: Outcomes) -> dict[str, Any]:
    """Paired differences of success@k: candidate - baseline.

    A prompt counts by the mean over its samples, once, however many samples there are. With one
    sample of each model a prompt, the p-value is that of McNemar's exact test; else that of a
    permutation test that swaps the models prompt by prompt (:func:`sign_flip_p_value`). p-values
    of several k are not corrected for each other.

    Returns:
        Ready for JSON: ``baseline`` and ``candidate`` (names), ``test`` (which p-value),
        ``num_prompts`` compared, ``num_prompts_missing`` (all trajectories of one model failed, so
        there is nothing to compare) and ``success_at``, a list for k up to the lower number of
        turns: ``k``, success ``baseline`` and ``candidate``, their ``difference`` with 95 % limits
        ``low`` and ``high``, ``p_value``, and ``won`` and ``lost``: ids of the prompts on which the
        candidate does better, or worse.

    Raises:
        TaskError: The prompts are not the same, or none has trajectories of both models.
    """
    _check_same_prompts(baseline, candidate)
    both = (baseline.num_samples > 0) & (candidate.num_samples > 0)
    if not both.any():
        raise TaskError(
            f"No prompt has trajectories of both {baseline.name} and {candidate.name}.",
            "Look into the failures folders of their evaluations.",
        )
    num_samples = [each.num_samples[both] for each in (baseline, candidate)]
    is_single = all((each == 1).all() for each in num_samples)
    # One sample more or less solved, with as many a prompt as there are on average.
    smallest = 1.0 / min(float(each.mean()) for each in num_samples)
    ids = baseline.prompt_ids[both]
    before, after = (
        each.num_solved[both] / num[:, None]
        for each, num in zip((baseline, candidate), num_samples, strict=True)
    )
    return {
        "baseline": baseline.name,
        "candidate": candidate.name,
        "test": MCNEMAR if is_single else SIGN_FLIP,
        "num_prompts": len(ids),
        "num_prompts_missing": int((~both).sum()),
        "success_at": [
            {
                "k": index + 1,
                **_paired(ids, before[:, index], after[:, index], smallest, is_single=is_single),
            }
            for index in range(min(before.shape[1], after.shape[1]))
        ],
    }


def mcnemar_p_value(num_won: int, num_lost: int) -> float:
    """Two-sided p-value in (0, 1] of McNemar's exact test.

    Prompts that both models solve, or neither, say nothing. Of the n others each would be won or
    lost with probability 1/2 if the models were alike: p = min(1, 2 · P(X <= min(won, lost))) for
    X ~ Binomial(n, 1/2). Source: McNemar, Psychometrika 12 (1947) 153.
    """
    n = num_won + num_lost
    term = tail = 1
    for k in range(min(num_won, num_lost)):
        term = term * (n - k) // (k + 1)
        tail += term
    # Integers throughout: exact, and only the quotient may be too small for a float.
    return max(min(1.0, 2 * tail / 2**n), sys.float_info.min)


def sign_flip_p_value(
    differences: npt.ArrayLike, *, num_permutations: int = _NUM_PERMUTATIONS, seed: int = _SEED
) -> float:
    """Two-sided p-value in (0, 1] of a paired permutation test.

    If the models were alike, each prompt's difference could as well have the other sign. p is the
    share of random signs, the observed ones included, whose sum is as far from 0 as that observed
    (Phipson & Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010) 39). The same for -differences.

    Args:
        differences: Shape ``[n]``, one a prompt.
        num_permutations: Random draws of signs.
        seed: Of these draws.
    """
    values = np.asarray(differences, np.float64)
    values = values[values != 0.0]
    observed, sizes = abs(math.fsum(values)), np.abs(values)
    # Sums of the same numbers in another order may differ by rounding.
    threshold = observed - 1e-9 * float(sizes.sum())
    rng = np.random.default_rng(seed)
    num_extreme, num_drawn = 0, 0
    while num_drawn < num_permutations:
        num = min(num_permutations - num_drawn, max(1, _CHUNK_SIGNS // max(1, len(sizes))))
        is_positive = rng.integers(0, 2, (num, len(sizes)), dtype=np.int8)
        sums = 2.0 * (is_positive @ sizes) - sizes.sum()
        num_extreme += int((np.abs(sums) >= threshold).sum())
        num_drawn += num
    return (1 + num_extreme) / (1 + num_permutations)


def _paired(
    ids: npt.NDArray[np.object_],
    before: Floats,
    after: Floats,
    smallest: float,
    *,
    is_single: bool,
) -> dict[str, Any]:
    difference = after - before
    won, lost = ids[difference > 0].tolist(), ids[difference < 0].tolist()
    interval = difference_interval(difference, smallest=smallest)
    return {
        "baseline": float(before.mean()),
        "candidate": float(after.mean()),
        "difference": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "p_value": mcnemar_p_value(len(won), len(lost))
        if is_single
        else sign_flip_p_value(difference),
        "num_won": len(won),
        "num_lost": len(lost),
        "won": won,
        "lost": lost,
    }


def _check_same_prompts(baseline: Outcomes, candidate: Outcomes) -> None:
    one, other = set(baseline.prompt_ids.tolist()), set(candidate.prompt_ids.tolist())
    only_one, only_other = sorted(one - other), sorted(other - one)
    changed = sorted(
        name
        for name in baseline.content.keys() & candidate.content.keys()
        if baseline.content[name] != candidate.content[name]
    )
    strangers = only_one + only_other + changed
    if strangers:
        raise TaskError(
            f"{baseline.name} and {candidate.name} were evaluated on different prompts: "
            f"{len(strangers)} are not shared ({len(only_one)} only with {baseline.name}, "
            f"{len(only_other)} only with {candidate.name}, {len(changed)} of one id but another "
            f"question or gold), for example {', '.join(map(repr, strangers[:_NUM_EXAMPLES]))}.",
            "Evaluate both on the same prompts: task.test, number of prompts and seed.",
        )
