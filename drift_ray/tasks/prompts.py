"""Prompts as a stream: counted and checked once, read anew each time, never held as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from drift_ray.errors import TaskError
from drift_ray.types import Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSet:
    """Prompts of distinct ids in a fixed order, of which a reader holds one at a time.

    Every iteration reads the source from its beginning. Two sets are equal if their prompts are.

    Raises:
        TaskError: In the course of an iteration, if the source no longer gives the prompts that
            were counted; at the latest after the last prompt.
    """

    source: str = field(compare=False)
    """Where the prompts come from, as messages name it."""
    num_prompts: int
    digest: str
    """Of every prompt's id, task, question and gold, in order; the same on every machine."""
    read: Callable[[], Iterable[Prompt]] = field(compare=False, repr=False)
    """Opens the source anew; what it gives is not yet compared with what was counted."""

    @classmethod
    def of(cls, prompts: Sequence[Prompt], *, source: str) -> PromptSet:
        """A set of prompts that lie in memory: for generators of few prompts and for tests."""
        tally = Tally()
        for prompt in prompts:
            tally.add(prompt)
        return tally.prompt_set(source=source, read=partial(iter, prompts))

    def __len__(self) -> int:
        return self.num_prompts

    def __iter__(self) -> Iterator[Prompt]:
        tally = Tally()
        for prompt in self.read():
            tally.add(prompt)
            if tally.num_prompts > self.num_prompts:
                break  # nobody is given more prompts than the set says it has
            yield prompt
        if (tally.num_prompts, tally.digest) != (self.num_prompts, self.digest):
            raise TaskError(
                f"{self.source} changed while in use: its prompts are no longer the "
                f"{self.num_prompts} that were checked at the start",
                hint="leave the source as it is during a run; start again to take what it is now",
            )


class Tally:
    """Counts and digests prompts as they pass by."""

    def __init__(self) -> None:
        self.num_prompts = 0
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, prompt: Prompt) -> None:
        """Take the next prompt into account."""
        self.num_prompts += 1
        name, task, question, gold = prompt.prompt_id, prompt.task, prompt.question, prompt.gold
        # The lengths keep a character from moving between fields unseen.
        lengths = f"{len(name)},{len(task)},{len(question)},{len(gold)}:"
        self._hash.update(f"{lengths}{name}{task}{question}{gold}".encode())

    @property
    def digest(self) -> str:
        """Of everything added so far."""
        return self._hash.hexdigest()

    def prompt_set(self, *, source: str, read: Callable[[], Iterable[Prompt]]) -> PromptSet:
        """The set of the prompts added so far, which ``read`` gives again."""
        return PromptSet(source=source, num_prompts=self.num_prompts, digest=self.digest, read=read)
