"""Which prompts are worth more trajectories, and how many each gets within a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from drift_ray.weighting.groups import Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What to sample."""

    prompt_ids: list[str]
    """The neediest first."""
    num_each: int
    """Further trajectories of each of these prompts."""

    @property
    def num_trajectories(self) -> int:
        """Of all of them."""
        return len(self.prompt_ids) * self.num_each


def choose(groups: pa.Table, *, below_ess: float, budget: int | None, group_size: int) -> Choice:
    """Choose the prompts that nobody solved and those whose ESS is low.

    Unsolved prompts come first, those with the fewest trajectories ahead, then the others by their
    ESS. Every chosen prompt gets the same number, at most ``group_size``; a budget that is too
    small for one each serves the neediest.

    Args:
        groups: Columns ``prompt_id``, ``size``, ``num_solved`` and ``ess`` (in trajectories), one
            row a prompt.
        below_ess: ESS over group size below which a prompt is chosen.
        budget: Trajectories to sample at most; as many as asked for when None.
        group_size: Trajectories a prompt gets if the budget allows.
    """
    size, ess = groups["size"].to_numpy(), groups["ess"].to_numpy()
    unsolved = groups["num_solved"].to_numpy() == 0
    need = np.where(unsolved, size, ess / size)
    chosen = np.flatnonzero(unsolved | (ess / size < below_ess))
    chosen = chosen[np.lexsort((need[chosen], ~unsolved[chosen]))]
    num_each = group_size
    if budget is not None and len(chosen):
        num_each = min(group_size, max(1, budget // len(chosen)))
        chosen = chosen[: budget // num_each]
    prompt_ids = groups["prompt_id"].take(pa.array(chosen)).to_pylist()
    return Choice(prompt_ids=prompt_ids, num_each=num_each)


def useful_ess(groups: pa.Table) -> float:
    """Effective trajectories of all groups with a success.

    Groups that all failed have weights that are all alike, which looks like a high ESS but tells a
    policy nothing: they count 0, so that a first success counts as the gain that it is.
    """
    solved: Floats = groups["num_solved"].to_numpy() > 0
    return float((groups["ess"].to_numpy() * solved).sum())


def next_indices(
    rows: pa.Table, failures: pa.Table, prompt_ids: list[str], *, group_size: int
) -> Mapping[str, int]:
    """The trajectory index at which each prompt goes on: never one that was used or failed.

    Args:
        rows: Columns ``prompt_id`` and ``trajectory_index`` of all trajectories.
        failures: The same columns of those that could not be completed.
        prompt_ids: The prompts.
        group_size: Indices below it belong to the run's own parts.
    """
    keys = pa.concat_tables([rows, failures])
    keys = keys.filter(pc.is_in(keys["prompt_id"], pa.array(prompt_ids, pa.string())))
    last = keys.group_by("prompt_id").aggregate([("trajectory_index", "max")])
    used = zip(last["prompt_id"].to_pylist(), last["trajectory_index_max"].to_pylist(), strict=True)
    found = dict.fromkeys(prompt_ids, group_size)
    return found | {prompt_id: max(group_size, index + 1) for prompt_id, index in used}
