"""What a process that trains does: the real training, without Ray Train's start for every model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from drift_ray.config import RunConfig
from drift_ray.lineage import claim_run
from drift_ray.pipeline import Pipeline
from drift_ray.schema import TRAJECTORY_SCHEMA
from drift_ray.store import RunStore
from drift_ray.training import stage as training
from drift_ray.training.rounds import Rounds
from drift_ray.training.rounds_worker import train_rounds
from drift_ray.training.worker import Process, train_policy
from drift_ray.weighting import stage as weighting

_ALONE = Process(rank=0, local_rank=0, device=torch.device("cpu"))
_BATCH = 64
"""Trajectories that go through the reference policy at once."""


def be_quiet() -> None:
    """No bar for every model that is read or written."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def train_once(config: RunConfig) -> None:
    """Weigh the trajectories of a run and train on them, unless that is done."""
    run = Pipeline(config)
    if training.is_done(run.store, digest=run.lineage.model):
        return
    claim_run(run.store, run.config, run.lineage)
    weighting.run_here(run.store, run.config, run.lineage)
    train_policy(
        run.config,
        run.store,
        digest=run.lineage.model,
        process=_ALONE,
        resume_from=None,
        on_checkpoint=_keep_nothing,
    )


def train_in_rounds(config: RunConfig, digest: str, rounds: Rounds) -> None:
    """Train on every round as it comes; one that was interrupted begins again with the first."""
    train_rounds(
        config,
        RunStore(config.run),
        digest=digest,
        process=_ALONE,
        resume_from=None,
        on_checkpoint=_keep_nothing,
        rounds=rounds,
    )


@torch.inference_mode()
def divergence(store_url: str, folder: str, reference: str) -> dict[str, float]:
    """KL(π_θ‖π_ref) of whole trajectories, from those that π_θ sampled at temperature 1.

    Args:
        store_url: A run directory.
        folder: Of the trajectories, with the log-probabilities under π_θ.
        reference: Folder of π_ref.

    Returns:
        Nats a trajectory: ``mean``, and its standard error ``std_error``.
    """
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    store = RunStore(store_url)
    model = AutoModelForCausalLM.from_pretrained(Path(reference), dtype=torch.float32).eval()
    ratios: list[float] = []
    for part in store.parts(folder):
        table = store.read_table(part, TRAJECTORY_SCHEMA, ["token_ids", "logprobs"])
        rows = sorted(table.to_pylist(), key=lambda row: len(row["token_ids"]))
        for first in range(0, len(rows), _BATCH):
            ratios += _log_ratios(model, rows[first : first + _BATCH])
    values = torch.tensor(ratios, dtype=torch.float64)
    return {
        "mean": float(values.mean()),
        "std_error": float(values.std()) / math.sqrt(len(values)),
    }


def _log_ratios(model: Any, rows: list[dict[str, Any]]) -> list[float]:
    longest = max(len(row["token_ids"]) for row in rows)
    token_ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    sampled = torch.full((len(rows), longest), math.nan)
    for index, row in enumerate(rows):
        token_ids[index, : len(row["token_ids"])] = torch.tensor(row["token_ids"])
        known = [math.nan if value is None else value for value in row["logprobs"]]
        sampled[index, : len(known)] = torch.tensor(known)
    # Padding stands on the right, where causal attention cannot see it.
    logprobs = model(input_ids=token_ids[:, :-1], use_cache=False).logits.log_softmax(-1)
    expected = logprobs.gather(-1, token_ids[:, 1:, None]).squeeze(-1)
    return (sampled[:, 1:] - expected).nan_to_num(nan=0.0).sum(-1).tolist()


def _keep_nothing(*_: object) -> None:
    """Such short trainings are begun again rather than continued."""
