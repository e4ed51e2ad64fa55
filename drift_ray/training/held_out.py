"""Prompts that are measured and not trained on, chosen by a hash."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def is_held_out(prompt_id: str, *, frac: float, seed: int) -> bool:
    """Whether a prompt is held out: a function of its id and the seed, whatever else there is."""
    digest = hashlib.blake2b(f"{seed}:{prompt_id}".encode(), digest_size=8, person=b"held out")
    return int.from_bytes(digest.digest()) < frac * 2**64


def held_out_rows(prompt_ids: pa.Array, *, frac: float, seed: int) -> npt.NDArray[np.bool_]:
    """Rows whose prompts are held out, shape ``[num_rows]``."""
    encoded = prompt_ids.dictionary_encode()
    prompts = [is_held_out(each, frac=frac, seed=seed) for each in encoded.dictionary.to_pylist()]
    return np.array(prompts, np.bool_)[encoded.indices.to_numpy()]
