"""``python -m tests.benchmarks.evidence`` (``make evidence``, ``make evidence-smoke``)."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from drift_ray.cluster import prepare_ray
from drift_ray.progress import console
from tests.benchmarks.evidence.collect import choose, collect
from tests.benchmarks.evidence.plan import FULL, SMOKE, TASKS, ablations, finals, tuning
from tests.benchmarks.evidence.run import Record, laboratory


def main() -> None:
    """Run what is left of the plan, then write and show what it found."""
    parser = argparse.ArgumentParser(prog="evidence", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, minutes")
    parser.add_argument("--tasks", nargs="*", default=[task.name for task in TASKS])
    arguments = parser.parse_args()
    scale = SMOKE if arguments.smoke else FULL
    began = time.monotonic()
    prepare_ray()
    records: list[Record] = []
    for task in TASKS:
        if task.name not in arguments.tasks:
            continue
        with laboratory(arguments.out, task, scale) as laboratory_of_task:
            best = choose(laboratory_of_task.run(tuning(task, scale)))
            records += laboratory_of_task.run(finals(task, scale, best))
            records += laboratory_of_task.run(ablations(task, scale, best))
    results = {"tasks": collect(records), "duration_s": time.monotonic() - began}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    console.print(f"written: {arguments.out}/results.json")


if __name__ == "__main__":
    main()
