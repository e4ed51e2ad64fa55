"""What was topped up, and is to be: written before the sampling, so that it can be gone on with.

Which prompts are needy changes with every part that is committed. So a round's choice is recorded
first, and an interrupted round is finished as it was chosen.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from drift_ray.errors import DataError
from drift_ray.store import TOPUPS_FILE, RunStore


class Round(BaseModel):
    """One ``drift-ray topup``."""

    model_config = ConfigDict(extra="forbid")

    number: int
    """From 1."""
    rollouts: str
    """Digest of the run's rollouts."""
    first_index: dict[str, int]
    """By prompt id, the first trajectory index of the round."""
    num_each: int
    """Trajectories a prompt."""
    below_ess: float
    budget: int | None
    num_unsolved: int
    """Chosen prompts that nobody had solved."""
    ess_before: float
    """See :func:`drift_ray.topup.choice.useful_ess`."""
    was_interrupted: bool = False
    """Whether more than one attempt sampled it."""
    duration_s: float = 0.0
    """Sampling by the attempt that finished it, without the starting of engines."""
    report: dict[str, Any] | None = None
    """What came of it; None until the round is done."""


def read_rounds(store: RunStore) -> list[Round]:
    """All rounds, in order.

    Raises:
        DataError: The file is damaged.
    """
    if not store.exists(TOPUPS_FILE):
        return []
    content = store.read_json(TOPUPS_FILE)
    try:
        return [Round.model_validate(each) for each in content["rounds"]]
    except (ValidationError, TypeError, KeyError) as error:
        raise DataError(
            f"{store.path(TOPUPS_FILE)} was not written by drift_ray: {error}", "Restore the file."
        ) from None


def write_rounds(store: RunStore, rounds: list[Round]) -> None:
    """Commit all rounds."""
    store.write_json(TOPUPS_FILE, {"rounds": [each.model_dump(mode="json") for each in rounds]})
