"""Rollouts and their importance weights as one table of flat arrays, which may exceed memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from drift_ray.errors import StageError
from drift_ray.store import RunStore
from drift_ray.training.held_out import held_out_rows
from drift_ray.training.parts import SamplePart, input_parts, offsets_of, read_part
from drift_ray.training.shared_arrays import NodeGroup, SharedArrays

_TOKEN_ARRAYS = {"token_ids": np.int32, "loss_mask": np.bool_, "ref_logprobs": np.float32}
_SAMPLE_ARRAYS = {"length": np.int64, "importance_weight": np.float64}
_FACTS = "facts"


@dataclass(frozen=True, kw_only=True, slots=True)
class LongestSample:
    """The sample that needs the largest token budget."""

    num_tokens: int
    part: str
    row: int
    prompt_id: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainingData:
    """The trajectories that carry loss; tokens of all of them back to back.

    Sample ``i`` owns ``[offsets[i], offsets[i + 1])`` of the flat arrays. Those of tokens are
    read-only and lie on disk; those of samples lie in memory.
    """

    token_ids: npt.NDArray[np.int32]
    """Shape ``[num_tokens]``: context and sampled tokens, as the engine saw them."""
    offsets: npt.NDArray[np.int64]
    """Shape ``[num_samples + 1]``."""
    lengths: npt.NDArray[np.int64]
    """Tokens of each sample, shape ``[num_samples]``."""
    loss_mask: npt.NDArray[np.bool_]
    """Shape ``[num_tokens]``: the tokens whose negative log-likelihood is minimised."""
    ref_logprobs: npt.NDArray[np.float32]
    """Shape ``[num_tokens]``: log π_ref wherever ``loss_mask`` is set, else maybe NaN; NaN in all
    of a sample whose engine did not tell. Of the whole context, also where that was cut."""
    importance_weight: npt.NDArray[np.float64]
    """Shape ``[num_samples]``, not 0; below it the likelihood is lowered (``group_advantage``)."""
    num_zero_weight: int
    """Trajectories left out because their importance weight is 0."""
    num_without_loss: int
    """Trajectories left out because they hold no sampled token to learn from."""
    left_out_weight_frac: float
    """Share of all importance weight, by size, that the trajectories left out had."""
    tokens_hash: str
    """Of ``token_ids`` and ``loss_mask``."""
    longest: LongestSample | None
    """None if there is no sample."""

    def __len__(self) -> int:
        return len(self.importance_weight)

    @property
    def num_trajectories(self) -> int:
        """Samples, and what was left out."""
        return len(self) + self.num_zero_weight + self.num_without_loss

    def fingerprint(self) -> str:
        """Hash of everything that shapes the gradients of these samples."""
        digest = hashlib.blake2b(self.tokens_hash.encode(), digest_size=16)
        for array in (self.offsets, self.importance_weight):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DataSplit:
    """What is trained on, and what is only measured; no prompt stands in both."""

    train: TrainingData
    held_out: TrainingData | None
    """None unless ``held_out_frac`` asks for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRecipe:
    """Which trajectories and tokens make up the training data."""

    weighting: str
    """Folder under ``weights/``."""
    loss_turns: Literal["last", "all"]
    """Whether the last assistant turn carries loss, or all of them. A turn's prefill is context."""
    max_context_tokens: int | None = None
    """Tokens kept before a trajectory's first loss token; None: all."""
    held_out_frac: float = 0.0
    """Share of the prompts that is held out: see :mod:`drift_ray.training.held_out`."""
    seed: int = 0
    """Chooses the prompts to hold out."""


class DataReader:
    """Reads rollout parts beside their weights, one after the other, into files on local disk.

    Memory holds one part at a time and 16 bytes a trajectory; a node's disk holds 9 bytes a token
    for as long as the data, or the processes that share it, live.

    Trajectories of importance weight 0 are left out: they add nothing to the loss, and a batch
    should be made of samples that do. So are those without any loss token.
    """

    def __init__(self, store: RunStore, recipe: DataRecipe, group: NodeGroup | None = None) -> None:
        """Begin with no data; all processes of the group do all of this together.

        Args:
            store: The run directory.
            recipe: What to make of its parts.
            group: The processes of this node; None: only this one.

        Raises:
            StorageError: The local disk is full.
        """
        self._store, self._recipe = store, recipe
        self._group = group or NodeGroup()
        self._train, self._held_out = _SampleSet(self._group), _SampleSet(self._group)

    def close(self) -> None:
        """Read no more; the data stays."""
        self._train.close()
        self._held_out.close()

    def add(self, parts: Iterable[str]) -> None:
        """Append the samples of these rollout parts to the data.

        Raises:
            DataError: Part and weights do not match, or hold impossible values; names file and row.
            StorageError: The run directory cannot be read, or the local disk is full.
        """
        self._group.barrier()  # all have seen the data so far before it grows
        for name in parts:
            if self._group.writes:
                self._add(name)
            # After every part: however many there are, nobody waits longer than a group's time-out.
            self._group.barrier()

    def split(self) -> DataSplit:
        """What was read so far."""
        held_out = self._held_out.data() if self._recipe.held_out_frac > 0 else None
        return DataSplit(train=self._train.data(), held_out=held_out)

    def _add(self, name: str) -> None:
        recipe = self._recipe
        part = read_part(
            self._store,
            name,
            weighting=recipe.weighting,
            loss_turns=recipe.loss_turns,
            max_context_tokens=recipe.max_context_tokens,
        )
        aside = held_out_rows(part.prompt_id, frac=recipe.held_out_frac, seed=recipe.seed)
        self._held_out.add(name, part.only(aside))
        self._train.add(name, part.only(~aside))


def load_training_data(
    store: RunStore,
    *,
    weighting: str,
    loss_turns: Literal["last", "all"],
    max_context_tokens: int | None = None,
    held_out_frac: float = 0.0,
    seed: int = 0,
    group: NodeGroup | None = None,
) -> DataSplit:
    """Read all rollout parts beside their weights: see :class:`DataRecipe`, :class:`DataReader`.

    Raises:
        StageError: An input is missing, every weight is zero, or one of the two sets is empty.
        DataError: Parts and weights do not match, or hold impossible values; names file and row.
        StorageError: The run directory cannot be read, or the local disk is full.
    """
    recipe = DataRecipe(
        weighting=weighting,
        loss_turns=loss_turns,
        max_context_tokens=max_context_tokens,
        held_out_frac=held_out_frac,
        seed=seed,
    )
    with closing(DataReader(store, recipe, group)) as reader:
        reader.add(input_parts(store, weighting))
        split = reader.split()
    check_not_empty(split, held_out_frac)
    return split


def check_token_budget(data: TrainingData, max_tokens: int) -> None:
    """Refuse samples that cannot go through the model at once.

    Raises:
        StageError: Names the longest sample.
    """
    longest = data.longest
    if longest is not None and longest.num_tokens > max_tokens:
        raise StageError(
            f"{longest.part}, row {longest.row} (prompt {longest.prompt_id!r}) has "
            f"{longest.num_tokens} tokens, more than training.micro_batch_tokens={max_tokens}.",
            f"Set training.micro_batch_tokens={longest.num_tokens} or more, or cut the context of "
            "long trajectories with training.max_context_tokens.",
        )


def check_not_empty(split: DataSplit, held_out_frac: float) -> None:
    """Refuse to train on nothing, or to measure nothing.

    Raises:
        StageError: One of the two sets has no sample.
    """
    train, held_out = split.train, split.held_out
    sets = [train] if held_out is None else [train, held_out]
    if not any(map(len, sets)):
        num = sum(each.num_zero_weight + each.num_without_loss for each in sets)
        raise StageError(
            f"All {num} trajectories have importance weight 0 or no sampled token: "
            "there is nothing to train on.",
            "Set weighting.all_failed=keep, draw more trajectories a prompt (rollout.group_size), "
            "or check the task's grader.",
        )
    for each, what in ((train, "leaves no prompt to train on"), (held_out, "holds out no prompt")):
        if each is not None and not len(each):
            raise StageError(
                f"training.held_out_frac={held_out_frac} {what} that carries weight.",
                "Choose another share, or sample more prompts.",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Facts:
    """What the arrays of a set do not tell."""

    num_trajectories: int = 0
    num_zero_weight: int = 0
    total_weight: float = 0.0
    """Of all trajectories, by size."""
    tokens_hash: str = ""
    longest: LongestSample | None = None

    @classmethod
    def from_json(cls, text: str) -> _Facts:
        fields = json.loads(text)
        longest = fields.pop("longest")
        return cls(**fields, longest=longest and LongestSample(**longest))


class _SampleSet:
    """The samples of one set in shared arrays."""

    def __init__(self, group: NodeGroup) -> None:
        # The facts travel the way of the arrays: one JSON line after every part, the last counts.
        self._arrays = SharedArrays({**_TOKEN_ARRAYS, **_SAMPLE_ARRAYS, _FACTS: np.uint8}, group)
        self._facts = _Facts()
        self._hashes = [hashlib.blake2b(digest_size=16) for _ in range(2)]

    def close(self) -> None:
        """Add no more; data that was returned stays."""
        self._arrays.close()

    def add(self, name: str, part: SamplePart) -> None:
        """Append the samples of a part; only in the process that writes."""
        weight = part.importance_weight
        kept = part.only((weight != 0) & (part.num_loss_tokens > 0))
        names = (*_TOKEN_ARRAYS, *_SAMPLE_ARRAYS)
        self._arrays.append({each: getattr(kept, each) for each in names})
        for digest, array in zip(self._hashes, (kept.token_ids, kept.loss_mask), strict=True):
            digest.update(array.data)
        facts = self._facts
        self._facts = replace(
            facts,
            num_trajectories=facts.num_trajectories + len(weight),
            num_zero_weight=facts.num_zero_weight + int((weight == 0).sum()),
            total_weight=facts.total_weight + float(np.abs(weight).sum()),
            tokens_hash="".join(each.hexdigest() for each in self._hashes),
            longest=_longer(facts.longest, name, kept),
        )
        line = json.dumps(asdict(self._facts)) + "\n"
        self._arrays.append({_FACTS: np.frombuffer(line.encode(), np.uint8)})

    def data(self) -> TrainingData:
        """The samples so far; in every process, after a barrier."""
        lines = self._arrays.loaded(_FACTS).tobytes().decode().splitlines()
        facts = _Facts.from_json(lines[-1]) if lines else _Facts()
        weight, lengths = (self._arrays.loaded(name) for name in ("importance_weight", "length"))
        kept_weight = float(np.abs(weight).sum())
        return TrainingData(
            token_ids=self._arrays.mapped("token_ids"),
            offsets=offsets_of(lengths),
            lengths=lengths,
            loss_mask=self._arrays.mapped("loss_mask"),
            ref_logprobs=self._arrays.mapped("ref_logprobs"),
            importance_weight=weight,
            num_zero_weight=facts.num_zero_weight,
            num_without_loss=facts.num_trajectories - facts.num_zero_weight - len(weight),
            left_out_weight_frac=max(0.0, 1 - kept_weight / (facts.total_weight or 1.0)),
            tokens_hash=facts.tokens_hash,
            longest=facts.longest,
        )


def _longer(longest: LongestSample | None, name: str, part: SamplePart) -> LongestSample | None:
    """The longer one of what was the longest and a part's."""
    if not len(part.length):
        return longest
    index = int(np.argmax(part.length))
    num_tokens = int(part.length[index])
    if longest is not None and longest.num_tokens >= num_tokens:
        return longest
    return LongestSample(
        num_tokens=num_tokens,
        part=name,
        row=int(part.row[index]),
        prompt_id=part.prompt_id[index].as_py(),
    )
