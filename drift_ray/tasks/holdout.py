"""Nothing that is evaluated may have been trained on."""

from __future__ import annotations

from collections.abc import Iterable

from drift_ray.errors import TaskError
from drift_ray.tasks.graders import normalize
from drift_ray.types import Prompt


def check_disjoint(train: Iterable[Prompt], test: Iterable[Prompt]) -> None:
    """Refuse held-out prompts whose question, normalised, is also trained on.

    Raises:
        TaskError: Names the first prompts that stand in both sets, and how many there are.
    """
    trained = {normalize(prompt.question) for prompt in train}
    shared = [prompt for prompt in test if normalize(prompt.question) in trained]
    if shared:
        examples = ", ".join(f"{p.prompt_id!r} ({p.question[:60]!r})" for p in shared[:3])
        raise TaskError(
            f"{len(shared)} prompts of task.test are also in task.train, for example {examples}.",
            "Remove them from one of the two sets: success on trained prompts proves nothing.",
        )
