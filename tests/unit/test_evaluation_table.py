"""The table on screen shows the metrics that were committed."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console, RenderableType

from drift_ray.evaluation.comparison import Outcomes, compare
from drift_ray.evaluation.metrics import evaluation_metrics
from drift_ray.evaluation.table import comparison_table, success_table
from drift_ray.schema import trajectory_table
from tests.unit.scripted import trajectory


def metrics(num_solved: int, *, max_turns: int = 2) -> dict[str, Any]:
    rows = [
        trajectory(f"p{k}", answers=["2", "1"] if k else ["1"], success=k < num_solved)
        for k in range(4)
    ]
    return evaluation_metrics(trajectory_table(rows), max_turns=max_turns)


def printed(what: RenderableType, width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def shown(models: dict[str, dict[str, Any]], width: int = 100) -> list[str]:
    return printed(success_table({"addition": models}), width)


def row(lines: list[str], label: str) -> list[str]:
    (line,) = (line for line in lines if line.startswith("│") and label in line)
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
    assert row(lines, "tokens per solved")[1] == "1.0"  # of one prompt there is no spread
    assert row(lines, "no answer")[1].startswith("0.000  [0.000, 0.")
    nothing = evaluation_metrics(trajectory_table([trajectory("p")]), max_turns=1)
    assert row(shown({"m": nothing}), "tokens per solved")[1] == "-"


def test_no_number_is_cut_off_on_a_usual_terminal() -> None:
    lines = shown({"reference": metrics(1), "trained": metrics(3)}, width=80)
    assert not any("…" in line for line in lines)


def test_trajectories_that_are_missing_are_shown() -> None:
    assert not any("missing" in line for line in shown({"m": metrics(1)}))
    some = evaluation_metrics(
        trajectory_table([trajectory("p")]), max_turns=1, num_expected=3, failure_causes=["a", "b"]
    )
    assert row(shown({"m": some}), "missing") == ["missing", "2 of 3"]


def test_benchmarks_stand_below_each_other() -> None:
    table = success_table(
        {
            "addition": {"reference": metrics(1), "trained": metrics(3)},
            "gsm8k": {"reference": metrics(2, max_turns=1)},
        }
    )
    lines = printed(table, width=80)
    starts = [i for i, line in enumerate(lines) if "(4)" in line]
    assert [lines[i].split()[1] for i in starts] == ["addition", "gsm8k"]
    first, second = lines[starts[0] : starts[1]], lines[starts[1] :]
    assert row(first, "success@2")[2].startswith("0.750")
    assert row(second, "success@1")[1].startswith("0.250")
    assert row(second, "success@1")[2] == row(second, "no answer")[2] == "-"
    assert not any("success@2" in line for line in second)


def compared(before: list[bool], after: list[bool]) -> list[str]:
    models = []
    for name, success in (("reference", before), ("trained", after)):
        rows = [trajectory(f"p{k}", success=each) for k, each in enumerate(success)]
        table = trajectory_table(rows)
        models.append(Outcomes.of(table, name=name, max_turns=1))
    return printed(comparison_table(compare(*models), name="addition"), width=80)


def test_a_comparison_says_what_changed_and_names_prompts() -> None:
    lines = compared([False] * 20 + [True], [True] * 20 + [False])
    assert "trained - reference on 21 prompts of addition" in lines[0]
    label, difference, p_value, won, lost = row(lines, "success@1")
    assert (label, p_value, won, lost) == ("success@1", "<0.0001", "20", "1")
    assert difference.startswith("+0.905  [+0.")
    assert any("exact McNemar test" in line for line in lines)
    assert "won at success@1: p0, p1, p10, p11, p12, …" in [line.strip() for line in lines]
    assert "lost at success@1: p20" in [line.strip() for line in lines]


def test_a_comparison_without_a_difference() -> None:
    lines = compared([True, False], [True, False])
    assert row(lines, "success@1")[1].startswith("+0.000  [-0.")
    assert row(lines, "success@1")[2:] == ["1.0000", "0", "0"]
    assert not any("won at" in line or "lost at" in line for line in lines)
