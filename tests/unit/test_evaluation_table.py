"""The table on screen shows the metrics that were committed."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from drift_ray.evaluation.metrics import evaluation_metrics
from drift_ray.evaluation.table import success_table
from drift_ray.schema import trajectory_table
from tests.unit.scripted import trajectory


def metrics(num_solved: int, *, max_turns: int = 2) -> dict[str, Any]:
    rows = [
        trajectory(f"p{k}", answers=["2", "1"] if k else ["1"], success=k < num_solved)
        for k in range(4)
    ]
    return evaluation_metrics(trajectory_table(rows), max_turns=max_turns)


def shown(models: dict[str, dict[str, Any]], width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(success_table(models))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def row(lines: list[str], label: str) -> list[str]:
    (line,) = (line for line in lines if label in line)
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_models_stand_side_by_side() -> None:
    lines = shown({"reference": metrics(1), "trained": metrics(3)})
    assert "4 held-out prompts" in lines[0]
    header = next(line for line in lines if "reference" in line)
    assert header.index("reference") < header.index("trained")
    (label, before, after) = row(lines, "success@2")
    assert label == "success@2"
    assert before.startswith("0.250  [0.0")
    assert after.startswith("0.750  [0.3")
    assert row(lines, "success@1")[1].startswith("0.250")
    assert sum("success@" in line for line in lines) == 2


def test_brackets_are_text_and_not_markup() -> None:
    estimate = metrics(2)["success_at"][1]
    cell = row(shown({"m": metrics(2)}), "success@2")[1]
    assert cell == f"0.500  [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def test_a_rate_of_nothing_is_a_dash() -> None:
    alone = evaluation_metrics(trajectory_table([trajectory("p", success=True)]), max_turns=1)
    lines = shown({"m": alone})
    assert row(lines, "repeated answers")[1] == "-"
    assert row(lines, "no answer")[1] == "0.0%"


def test_no_number_is_cut_off_on_a_usual_terminal() -> None:
    lines = shown({"reference": metrics(1), "trained": metrics(3)}, width=80)
    assert not any("…" in line for line in lines)
