"""Training data that comes in waves, while trajectories are still sampled.

A wave is the set of parts that are committed and weighed when it begins and stand in no earlier
one, sorted by name. Which these are is a matter of time: so a wave is recorded before any step uses
it, and whoever goes on with the training takes the recorded waves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from drift_ray.config import RunConfig
from drift_ray.errors import DataError
from drift_ray.schema import CONTENT_KEY, TRAJECTORY_SCHEMA
from drift_ray.store import CHECKPOINTS, ROLLOUTS, WEIGHTS, RunStore
from drift_ray.training.data import DataReader, DataRecipe, TrainingData, check_not_empty
from drift_ray.training.order import MoreWaves
from drift_ray.training.parts import input_parts
from drift_ray.training.shared_arrays import NodeGroup

_POLL_S = 0.5
# Processes that wait for a decision must not wait as long as their group's time-out.
_DECIDE_WITHIN_S = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """What a training must know of the sampling that goes on beside it."""

    weights_digest: str
    """Of the finished weights: their summary says when no part is missing any more."""
    num_trajectories: int
    """Planned ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wave:
    """Some parts, which begin to be trained on together."""

    parts: dict[str, str]
    """Hash of the content by name, sorted; may be empty."""
    is_last: bool
    """Whether all rollouts stand in this wave or an earlier one."""


class WaveBook(Protocol):
    """Knows which parts a wave is made of."""

    def wave(self, number: int) -> Wave | None:
        """The wave with this number from 0; None: ask again, there is none yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OneWave:
    """All parts, when all are there."""

    store: RunStore
    weighting: str

    def wave(self, number: int) -> Wave:
        """The only one. Raises as :func:`drift_ray.training.parts.input_parts`."""
        return Wave(parts=dict.fromkeys(input_parts(self.store, self.weighting), ""), is_last=True)


Find = Callable[[Sequence[Wave]], tuple[list[str], bool] | None]
"""Given the waves so far: the parts of the next one, and whether it is the last; None: not yet."""


class RecordedWaves:
    """Waves that are recorded in ``checkpoints/DIGEST/waves.json`` as they are decided."""

    def __init__(
        self,
        store: RunStore,
        *,
        digest: str,
        find: Find,
        facts: dict[str, Any],
        poll_s: float = _POLL_S,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        """Go on where the record ends.

        Args:
            store: The run directory.
            digest: Names the training.
            find: Decides what the next wave is.
            facts: What to record beside the waves.
            poll_s: How long to wait before asking again.
            wait: Lets some seconds pass.

        Raises:
            DataError: The record is damaged, or a part that was trained on has changed since.
        """
        self._store, self._find, self._facts = store, find, facts
        self._poll_s, self._wait = poll_s, wait
        self._name = waves_name(digest)
        self._waves = read_waves(store, digest)
        recorded = {part: content for wave in self._waves for part, content in wave.parts.items()}
        for part, content in self._contents(list(recorded)).items():
            if content != recorded[part]:
                raise DataError(
                    f"{store.path(part)} has changed since a training began to use it.",
                    f"Delete {store.path(f'{CHECKPOINTS}/{digest}')} to train anew.",
                )

    def wave(self, number: int) -> Wave | None:
        """The recorded wave, or one that is decided, and recorded, within some seconds."""
        num_asked = 0
        while number >= len(self._waves):
            if not self._decide():
                if num_asked * self._poll_s >= _DECIDE_WITHIN_S:
                    return None
                num_asked += 1
                self._wait(self._poll_s)
        return self._waves[number]

    def _decide(self) -> bool:
        found = self._find(self._waves)
        if found is None:
            return False
        parts, is_last = found
        self._waves.append(Wave(parts=self._contents(parts), is_last=is_last))
        record = {"waves": [asdict(wave) for wave in self._waves], **self._facts}
        self._store.write_json(self._name, record)
        return True

    def _contents(self, parts: list[str]) -> dict[str, str]:
        metadata = self._store.check_parts(parts, TRAJECTORY_SCHEMA)
        return {part: metadata[part].get(CONTENT_KEY, b"").decode() for part in parts}


def find_beside(store: RunStore, weighting: str, overlap: Overlap) -> Find:
    """What is committed and weighed and stands in no earlier wave.

    Args:
        store: The run directory.
        weighting: Folder under ``weights/``, which holds nothing but the weights of
            ``overlap.weights_digest``, and in the end its summary.
        overlap: What goes on beside.
    """

    def find(waves: Sequence[Wave]) -> tuple[list[str], bool] | None:
        folder = f"{WEIGHTS}/{weighting}"
        # First: parts that are committed after this look are then no part of the last wave.
        is_last = store.has_digest(f"{folder}/summary.json", overlap.weights_digest)
        if is_last:
            there = input_parts(store, weighting)
        else:
            there = [f"{ROLLOUTS}/{name.rsplit('/', 1)[1]}" for name in store.parts(folder)]
        used = {part for wave in waves for part in wave.parts}
        fresh = [part for part in there if part not in used]
        return (fresh, is_last) if fresh or is_last else None

    return find


class WaveFeed:
    """Reads wave after wave; all processes that train together call everything alike.

    ``split`` is the data so far, ``waves`` what it was read from.
    """

    def __init__(
        self,
        store: RunStore,
        config: RunConfig,
        group: NodeGroup,
        *,
        digest: str,
        overlap: Overlap | None,
    ) -> None:
        """Read waves until there is a sample, or until they end.

        Args:
            store: The run directory.
            config: Of which the data depends on weighting, training and seed.
            group: The processes that train together.
            digest: Names the training.
            overlap: The sampling that goes on beside; None: there is one wave of all parts.

        Raises:
            StageError: There is nothing to train on.
            DataError: A part, its weights or the record of waves is damaged.
            StorageError: The run directory cannot be read, or the local disk is full.
        """
        training, weighting = config.training, config.weighting.name
        recipe = DataRecipe(
            weighting=weighting,
            loss_turns=training.loss_turns,
            max_context_tokens=training.max_context_tokens,
            held_out_frac=training.held_out_frac,
            seed=config.seed,
        )
        self._group, self._overlap = group, overlap
        self._book: WaveBook | None = None
        if group.leads and overlap is None:
            self._book = OneWave(store=store, weighting=weighting)
        elif group.leads and overlap is not None:
            find = find_beside(store, weighting, overlap)
            self._book = RecordedWaves(store, digest=digest, find=find, facts=asdict(overlap))
        self._held_out_frac = training.held_out_frac
        self._reader = DataReader(store, recipe, group)
        self.split = self._reader.split()
        self.waves: list[Wave] = []
        while not self.waves or not (len(self.split.train) or self.is_complete):
            self._advance()

    def close(self) -> None:
        """Read no more; the data stays."""
        self._reader.close()

    @property
    def is_complete(self) -> bool:
        """Whether no further wave comes."""
        return bool(self.waves) and self.waves[-1].is_last

    def more(self) -> MoreWaves | None:
        """What comes after the first samples, if anything does.

        Of the planned trajectories, as many are expected to become samples as of the first ones.
        """
        if self._overlap is None or self.is_complete:
            return None
        sets = [self.split.train, self.split.held_out]
        num_read = sum(each.num_trajectories for each in sets if each is not None)
        expected = self._overlap.num_trajectories * len(self.split.train) / num_read
        return MoreWaves(num_planned=max(1, round(expected)), next_wave=self._next)

    def _next(self) -> tuple[TrainingData, TrainingData | None, bool]:
        self._advance()
        return self.split.train, self.split.held_out, self.is_complete

    def _advance(self) -> None:
        wave: Any = None
        while wave is None:
            wave = self._group.share(self._book and self._book.wave(len(self.waves)))
        self._reader.add(wave.parts)
        self.split = self._reader.split()
        self.waves.append(wave)
        # Where trajectories came in bit by bit, hours of training count more than a held-out loss.
        if self.is_complete and (len(self.waves) == 1 or not len(self.split.train)):
            check_not_empty(self.split, self._held_out_frac)


def waves_name(digest: str) -> str:
    """Where the waves of the training with this digest are recorded."""
    return f"{CHECKPOINTS}/{digest}/waves.json"


def read_waves(store: RunStore, digest: str) -> list[Wave]:
    """The recorded waves of the training with this digest; empty if there are none.

    Raises:
        DataError: The record is damaged.
    """
    name = waves_name(digest)
    if not store.exists(name):
        return []
    hint = "Delete the run's checkpoints/ folder to train anew."
    record = store.read_json(name, hint)
    try:
        return [Wave(parts=each["parts"], is_last=each["is_last"]) for each in record["waves"]]
    except (KeyError, TypeError):
        raise DataError(f"{store.path(name)} is not a record of waves.", hint) from None
