"""The samples of a training as far as they are known, and the order in which it takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from drift_ray.config import TrainingConfig
from drift_ray.training.batches import BatchPlan
from drift_ray.training.data import TrainingData, check_token_budget


@dataclass(frozen=True, kw_only=True, slots=True)
class MoreWaves:
    """Samples that are still to come while a training has begun."""

    num_planned: int
    """Samples to train on in all waves, as expected."""
    next_wave: Callable[[], tuple[TrainingData, TrainingData | None, bool]]
    """Waits for a wave; returns the samples of all waves so far to train on and to hold out, in
    order, and whether it was the last one. All ranks call it alike."""


class SampleOrder:
    """Which samples each step takes; waits for waves of which a step needs some."""

    def __init__(
        self,
        data: TrainingData,
        held_out: TrainingData | None,
        config: TrainingConfig,
        *,
        seed: int,
        more: MoreWaves | None,
    ) -> None:
        """Begin with the samples of the first wave, or with all.

        Raises:
            StageError: A sample exceeds the token budget.
        """
        self._max_tokens = config.micro_batch_tokens
        self._more = more
        self.data, self.held_out = data, held_out
        self.plan = BatchPlan(
            num_samples=len(data),
            batch_size=config.batch_size,
            num_epochs=config.num_epochs,
            seed=seed,
            is_complete=more is None,
            num_planned=more.num_planned if more else None,
        )
        self._check_budget()

    def fingerprint(self) -> str:
        """Hash of the samples so far; later waves are recorded on their own."""
        held_out = "" if self.held_out is None else self.held_out.fingerprint()
        return self.data.fingerprint() + held_out

    def settle(self, step: int) -> None:
        """Wait until it is known which samples a step takes, or that there is no such step.

        Raises:
            StageError: A sample exceeds the token budget.
        """
        while self._more is not None and not self.plan.has_batch(step):
            self.data, self.held_out, is_last = self._more.next_wave()
            self.plan = self.plan.with_wave(len(self.data), is_last=is_last)
            self._check_budget()

    def _check_budget(self) -> None:
        for data in (self.data, self.held_out):
            if data is not None:
                check_token_budget(data, self._max_tokens)
