"""``python -m tests.benchmarks.evidence`` (``make evidence``, ``make evidence-smoke``)."""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.markdown import Markdown

from drift_ray.cluster import prepare_ray
from drift_ray.progress import console
from tests.benchmarks.evidence.collect import choose, collect
from tests.benchmarks.evidence.page import write_page
from tests.benchmarks.evidence.peer import known
from tests.benchmarks.evidence.plan import FULL, SMOKE, TASKS, Scale, ablations, finals, tuning
from tests.benchmarks.evidence.plots import plot
from tests.benchmarks.evidence.tables import insert, markdown

ROOT = Path(__file__).resolve().parents[3]
README = ROOT / "README.md"


def main() -> None:
    """Run what is left of the plan, then write and show what it found."""
    parser = argparse.ArgumentParser(prog="evidence", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, minutes")
    parser.add_argument("--tasks", nargs="*", default=[task.name for task in TASKS])
    parser.add_argument("--write-readme", action="store_true", help="put the tables there")
    arguments = parser.parse_args()
    scale = SMOKE if arguments.smoke else FULL
    began = time.monotonic()
    prepare_ray()
    records = [
        record
        for task in TASKS
        if task.name in arguments.tasks
        for record in run_task(arguments.out, task.name, scale)
    ]
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "duration_s": round(time.monotonic() - began, 1),
        "tasks": collect(records),
    }
    out: Path = arguments.out
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    text = markdown(results)
    (out / "results.md").write_text(text)
    for name, found in results["tasks"].items():
        plot(name, found["methods"], out / f"{name}.svg")
    write_page(results, out / "report.html")
    console.print(Markdown(text))
    if arguments.write_readme:
        README.write_text(insert(README.read_text(), text))
    console.print(f"written: {out}/report.html, results.json, results.md and a plot for each task")


def run_task(out: Path, name: str, scale: Scale) -> list[dict[str, Any]]:
    """Tune, then run what is reported; test prompts are touched by the latter alone."""
    # Imports Ray, which reads its environment then: what prepare_ray has settled.
    from tests.benchmarks.evidence.run import laboratory

    (task,) = (task for task in TASKS if task.name == name)
    with laboratory(out, task, scale) as place:
        best = choose(place.run(tuning(task, scale)))
        return [
            *place.run(finals(task, scale, best)),
            *known(out, name, scale),
            *place.run(ablations(task, scale, best)),
        ]


def commit() -> str:
    """The commit at hand, marked where the working tree differs from it."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
