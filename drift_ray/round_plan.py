"""Rounds as they are planned: which prompts, whose policy, and what each is a function of.

A round is a run of its own below the run directory, with a lineage of its own. The policy that
samples it is the one that the round before trained, so every round is a function of all before it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from drift_ray.config import RunConfig
from drift_ray.errors import ConfigError
from drift_ray.lineage import SAME_STEPS, Lineage, digest, leaves
from drift_ray.store import MODEL, ROUNDS
from drift_ray.tasks.prompts import PromptSet
from drift_ray.types import Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One round."""

    number: int
    """From 1."""
    folder: str
    """Its sub-run."""
    sampler_folder: str | None
    """Where the policy that samples it lies; None is the configured reference policy."""
    positions: npt.NDArray[np.int64]
    """Shape ``[num_prompts]``, sorted: its prompts' places in the training set."""
    seed: int
    """Of its samples and of the order of its training."""
    lineage: Lineage
    """``reference`` is the policy that samples, ``model`` the one that is trained."""

    def prompts(self, everything: PromptSet) -> list[Prompt]:
        """The round's prompts, in the order of the training set."""
        wanted = set(self.positions.tolist())
        return [prompt for place, prompt in enumerate(everything) if place in wanted]


def plan_rounds(config: RunConfig, lineage: Lineage, num_prompts: int) -> list[Round]:
    """All rounds of a run.

    Args:
        config: The run.
        lineage: What it would be made of in one round.
        num_prompts: Of the training set.

    Raises:
        ConfigError: A round is to have more prompts than there are.
    """
    per_round = prompts_per_round(config, num_prompts)
    rounds: list[Round] = []
    for number in range(1, config.rounds.num_rounds + 1):
        folder = f"{ROUNDS}/{number:03d}"
        before = rounds[-1] if rounds else None
        rounds.append(
            Round(
                number=number,
                folder=folder,
                sampler_folder=f"{before.folder}/{MODEL}" if before else None,
                positions=positions_of(number, num_prompts, per_round, seed=config.seed),
                seed=round_seed(config.seed, number),
                lineage=_trace(config, lineage, number, per_round, before),
            )
        )
    return rounds


def prompts_per_round(config: RunConfig, num_prompts: int) -> int:
    """Prompts of a round.

    Raises:
        ConfigError: More than there are.
    """
    wanted = config.rounds.prompts_per_round
    number = max(1, round(wanted * num_prompts)) if isinstance(wanted, float) else wanted
    if number > num_prompts:
        raise ConfigError(
            f"rounds.prompts_per_round is {number}, but task.train has {num_prompts} prompts.",
            f"Set it to {num_prompts} or less, or to a share such as 0.1.",
        )
    return number


def positions_of(
    number: int, num_prompts: int, per_round: int, *, seed: int
) -> npt.NDArray[np.int64]:
    """Places of a round's prompts: a function of (seed, round) alone.

    Every epoch permutes the training set anew and is cut into rounds of one size. What does not
    fill a round is left out of that epoch.

    Args:
        number: Of the round, from 1.
        num_prompts: Of the training set.
        per_round: Of a round; at most ``num_prompts``.
        seed: The run's.

    Returns:
        Shape ``[per_round]``, sorted, without repeats.
    """
    epoch, index = divmod(number - 1, num_prompts // per_round)
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = generator.permutation(num_prompts)
    return np.sort(order[index * per_round : (index + 1) * per_round])


def round_seed(seed: int, number: int) -> int:
    """The seed of a round: a prompt that comes again is sampled anew."""
    key = f"{seed}\0round\0{number}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) % 2**31


def with_last_model(lineage: Lineage, rounds: list[Round]) -> Lineage:
    """The lineage of a run in rounds: its model is that of the last one.

    Its fingerprint says that it is one: no directory holds a run in rounds and another one.
    """
    fingerprint = lineage.fingerprint | {"rounds.prompts_per_round": str(len(rounds[0].positions))}
    return replace(lineage, fingerprint=fingerprint, model=rounds[-1].lineage.model)


def _trace(
    config: RunConfig, lineage: Lineage, number: int, per_round: int, before: Round | None
) -> Lineage:
    fingerprint = lineage.fingerprint | {
        "rounds.number": str(number),
        "rounds.prompts_per_round": str(per_round),
    }
    if before is not None:
        fingerprint |= {**_learning(config), "rounds.sampler": before.lineage.model}
    rollouts = digest(fingerprint)
    weights = digest(rollouts, lineage.weights)
    return replace(
        lineage,
        fingerprint=fingerprint,
        reference=before.lineage.model if before else lineage.reference,
        rollouts=rollouts,
        weights=weights,
        model=digest(weights, lineage.model, _schedule(config)),
    )


def _learning(config: RunConfig) -> dict[str, str]:
    """What shaped the policy that samples, setting by setting, so that a change can be named."""
    return leaves(
        {
            "weighting": config.weighting.model_dump(mode="json"),
            "training": config.training.model_dump(mode="json", exclude=SAME_STEPS),
            "rounds": _schedule(config),
        }
    )


def _schedule(config: RunConfig) -> dict[str, object]:
    names = {"num_rounds", "optimizer"}
    return config.rounds.model_dump(mode="json", include=names)
