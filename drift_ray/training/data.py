"""Rollouts and their importance weights as one table of flat arrays, which may exceed memory."""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from drift_ray.errors import StageError
from drift_ray.store import ROLLOUTS, WEIGHTS, RunStore
from drift_ray.training.parts import Bools, SamplePart, offsets_of, read_part
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
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each sample, shape ``[num_samples]``."""
        return np.diff(self.offsets)

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
    """At least one sample."""
    held_out: TrainingData | None
    """None unless ``held_out_frac`` asks for it; at least one sample then."""


def input_parts(store: RunStore, weighting: str) -> list[str]:
    """Names of all rollout parts, each of which has its weights.

    Args:
        store: The run directory.
        weighting: Folder under ``weights/``.

    Raises:
        StageError: There are no rollouts, or a part has not been weighed.
    """
    parts = store.parts(ROLLOUTS)
    if not parts:
        raise StageError(
            f"There are no rollouts to train on in {store.path(ROLLOUTS)}.",
            "Run `drift-ray rollout` first.",
        )
    weighed = {name.rsplit("/", 1)[1] for name in store.parts(f"{WEIGHTS}/{weighting}")}
    missing = [part for part in parts if part.rsplit("/", 1)[1] not in weighed]
    if missing:
        raise StageError(
            f"{len(missing)} of {len(parts)} rollout parts have no weights in "
            f"{store.path(f'{WEIGHTS}/{weighting}')}; the first is {missing[0]}.",
            "Run `drift-ray weigh` first.",
        )
    return parts


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
    """Read every rollout part beside its weights, one after the other, into files on local disk.

    Memory holds one part at a time and 16 bytes a trajectory; a node's disk holds 9 bytes a token
    for as long as the returned arrays, or the processes that share them, live.

    Trajectories of importance weight 0 are left out: they add nothing to the loss, and a batch
    should be made of samples that do. So are those without any loss token.

    Args:
        store: The run directory.
        weighting: Folder under ``weights/``.
        loss_turns: Whether the last assistant turn carries loss, or all of them. A turn's
            prefill is context.
        max_context_tokens: Tokens kept before a trajectory's first loss token; None: all.
        held_out_frac: Share of the prompts that is held out: see :func:`is_held_out`.
        seed: Chooses the prompts to hold out.
        group: The processes of this node, which keep one copy of the data; None: only this one.

    Raises:
        StageError: An input is missing, every weight is zero, or one of the two sets is empty.
        DataError: Parts and weights do not match, or hold impossible values; names file and row.
        StorageError: The run directory cannot be read, or the local disk is full.
    """
    group = group or NodeGroup()
    with closing(_SampleSet(group)) as train, closing(_SampleSet(group)) as held_out:
        if group.writes:
            for name in input_parts(store, weighting):
                part = read_part(
                    store,
                    name,
                    weighting=weighting,
                    loss_turns=loss_turns,
                    max_context_tokens=max_context_tokens,
                )
                aside = held_out_rows(part.prompt_id, frac=held_out_frac, seed=seed)
                held_out.add(name, part.only(aside))
                train.add(name, part.only(~aside))
        group.barrier()
        split = DataSplit(
            train=train.data(), held_out=held_out.data() if held_out_frac > 0 else None
        )
    _check_not_empty(split, held_out_frac)
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


def is_held_out(prompt_id: str, *, frac: float, seed: int) -> bool:
    """Whether a prompt is held out: a function of its id and the seed, whatever else there is."""
    digest = hashlib.blake2b(f"{seed}:{prompt_id}".encode(), digest_size=8, person=b"held out")
    return int.from_bytes(digest.digest()) < frac * 2**64


def held_out_rows(prompt_ids: pa.Array, *, frac: float, seed: int) -> Bools:
    """Rows whose prompts are held out, shape ``[num_rows]``."""
    encoded = prompt_ids.dictionary_encode()
    prompts = [is_held_out(each, frac=frac, seed=seed) for each in encoded.dictionary.to_pylist()]
    return np.array(prompts, np.bool_)[encoded.indices.to_numpy()]


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
        facts = _Facts.from_json(lines[-1])
        weight = self._arrays.loaded("importance_weight")
        kept_weight = float(np.abs(weight).sum())
        return TrainingData(
            token_ids=self._arrays.mapped("token_ids"),
            offsets=offsets_of(self._arrays.loaded("length")),
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


def _check_not_empty(split: DataSplit, held_out_frac: float) -> None:
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
