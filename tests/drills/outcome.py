"""What a drill has done and found, and how a run directory is compared with an undisturbed one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from rich.table import Table
from safetensors.numpy import load

from drift_ray.schema import TRAJECTORY_SCHEMA
from drift_ray.store import MODEL, RunStore
from drift_ray.types import Trajectory

KINDS = ("replica", "trainer", "raylet", "driver")
"""What a kill may hit."""
RTOL = 1e-5
"""Up to which two float32 numbers are the same."""

Model = Mapping[str, np.ndarray[Any, Any]]


@dataclass(slots=True)
class Tally:
    """Of a round, or of several."""

    kills: Counter[str] = field(default_factory=Counter)
    num_trajectories: int = 0
    num_lost: int = 0
    num_doubled: int = 0
    num_different: int = 0
    num_models: int = 0
    num_models_different: int = 0
    largest_difference: float = 0.0
    """Of a model's parameter, relative to that of the undisturbed run."""
    wall_s: float = 0.0

    @property
    def clean(self) -> bool:
        return not (
            self.num_lost or self.num_doubled or self.num_different or self.num_models_different
        )

    def add(self, other: Tally) -> None:
        for each in fields(self):
            if each.name != "largest_difference":
                both = getattr(self, each.name) + getattr(other, each.name)
                setattr(self, each.name, both)
        self.largest_difference = max(self.largest_difference, other.largest_difference)

    def compare_trajectories(
        self, store: RunStore, expected: Mapping[tuple[str, int], Trajectory]
    ) -> None:
        """Enter how the committed trajectories differ from those of an undisturbed run."""
        found = Counter[tuple[str, int]]()
        columns = ["prompt_id", "trajectory_index", "token_ids"]
        for part in store.parts("rollouts"):
            for row in store.read_table(part, TRAJECTORY_SCHEMA, columns).to_pylist():
                key = row["prompt_id"], row["trajectory_index"]
                found[key] += 1
                same = key in expected and expected[key].token_ids.tolist() == row["token_ids"]
                self.num_different += not same
        self.num_trajectories += len(found)
        self.num_lost += len(expected.keys() - found.keys())
        self.num_doubled += sum(count - 1 for count in found.values())

    def compare_model(self, found: Model, expected: Model) -> None:
        """Enter how a trained model differs from that of an undisturbed run."""
        self.num_models += 1
        if found.keys() != expected.keys():
            self.num_models_different += 1
            return
        difference = max(_difference(found[name], expected[name]) for name in expected)
        self.largest_difference = max(self.largest_difference, difference)
        self.num_models_different += not difference <= RTOL  # a NaN is a difference

    def as_json(self) -> dict[str, Any]:
        return {
            "kills": dict(self.kills),
            "num_trajectories": self.num_trajectories,
            "lost": self.num_lost,
            "doubled": self.num_doubled,
            "different": self.num_different,
            "num_models": self.num_models,
            "models_different": self.num_models_different,
            "largest_difference": self.largest_difference,
            "wall_s": round(self.wall_s, 1),
        }

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}s" for kind, count in sorted(self.kills.items()))
        models = f"; {self.num_models} models: {self.num_models_different} different"
        return (
            f"{self.kills.total()} kills ({kinds or 'none'}), "
            f"{self.num_trajectories} trajectories: {self.num_lost} lost, "
            f"{self.num_doubled} doubled, {self.num_different} different"
            f"{models if self.num_models else ''}"
        )


def _difference(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    if found.shape != expected.shape:
        return np.inf
    scale = np.abs(expected) + 1e-6  # a zero has no relative error
    return float(np.max(np.abs(found - expected) / scale, initial=0.0))


def read_model(store: RunStore) -> Model:
    """The trained parameters, by name."""
    with store.fs.open(store.path(f"{MODEL}/model.safetensors"), "rb") as file:
        return load(file.read())


def table(rounds: list[Tally], total: Tally) -> Table:
    """One row a round; the first was not disturbed."""
    shown = Table(title="Kills and what they did")
    for heading in (
        "round", *(f"{kind}s" for kind in KINDS), "trajectories", "lost", "doubled", "different",
        "model", "seconds",
    ):  # fmt: skip
        shown.add_column(heading, justify="right")
    for number, tally in enumerate(rounds):
        shown.add_row(str(number), *_cells(tally), end_section=number == len(rounds) - 1)
    shown.add_row("all", *_cells(total))
    return shown


def _cells(tally: Tally) -> list[str]:
    model = "different" if tally.num_models_different else f"{tally.largest_difference:.1e}"
    return [
        *(str(tally.kills[kind]) for kind in KINDS),
        f"{tally.num_trajectories:,}",
        str(tally.num_lost),
        str(tally.num_doubled),
        str(tally.num_different),
        model if tally.num_models else "-",
        f"{tally.wall_s:.0f}",
    ]
