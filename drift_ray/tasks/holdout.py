"""Nothing that is evaluated may have been trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt

from drift_ray.errors import TaskError
from drift_ray.tasks.graders import normalize
from drift_ray.tasks.prompts import PromptSet
from drift_ray.types import Prompt

# Enough for NumPy to outweigh its call, little enough to hold.
_BATCH_PROMPTS = 1024
# So long that equal hashes mean equal questions: no second look at the text is needed.
_HASH_BYTES = 16

_Hashes = npt.NDArray[np.bytes_]
"""One element a prompt, of ``_HASH_BYTES`` bytes."""


def check_disjoint(train: Iterable[Prompt], test: PromptSet, *, setting: str = "task.test") -> None:
    """Refuse held-out prompts whose question, normalised, is also trained on.

    Both are streamed, ``test`` twice where it is refused. Held at once are 16 bytes a held-out
    prompt, a few times over, however many prompts are trained on.

    Args:
        train: Prompts to train on.
        test: Held-out prompts.
        setting: Which of the run's prompt sets these are, as messages name it.

    Raises:
        TaskError: Names the first prompts that stand in both sets, and how many there are.
    """
    held_out = np.unique(_hashes(test))
    is_trained = np.zeros(held_out.shape, bool)
    for batch in _batches(train):
        hashes = _hashes(batch)
        found = hashes[_among(hashes, held_out)]
        is_trained[np.searchsorted(held_out, found)] = True
    if is_trained.any():
        _refuse(test, held_out[is_trained], setting)


def _refuse(test: PromptSet, trained: _Hashes, setting: str) -> None:
    num_shared, examples = 0, list[str]()
    for batch in _batches(test):
        shared = np.flatnonzero(_among(_hashes(batch), trained))
        num_shared += len(shared)
        for k in shared[: 3 - len(examples)]:
            examples.append(f"{batch[k].prompt_id!r} ({batch[k].question[:60]!r})")
    raise TaskError(
        f"{num_shared} prompts of {setting} are also in task.train, for example "
        f"{', '.join(examples)}.",
        "Remove them from one of the two sets: success on trained prompts proves nothing.",
    )


def _batches(prompts: Iterable[Prompt]) -> Iterator[list[Prompt]]:
    stream = iter(prompts)
    while batch := list(islice(stream, _BATCH_PROMPTS)):
        yield batch


def _hashes(prompts: Iterable[Prompt]) -> _Hashes:
    """Of the normalised questions."""
    packed = bytearray()
    for prompt in prompts:
        question = normalize(prompt.question).encode()
        packed += hashlib.blake2b(question, digest_size=_HASH_BYTES).digest()
    return np.frombuffer(packed, f"S{_HASH_BYTES}")


def _among(hashes: _Hashes, known: _Hashes) -> npt.NDArray[np.bool_]:
    """Which of ``hashes`` are among ``known``, which ascend."""
    before = np.searchsorted(known, hashes, side="left")
    return before < np.searchsorted(known, hashes, side="right")
