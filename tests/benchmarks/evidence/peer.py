"""``python -m tests.benchmarks.evidence.peer`` (``make evidence-trl``): TRL's GRPO beside ours.

It is tuned and run as on-policy RL is: the same trials, seeds, prompts and numbers of rounds and
trajectories, in the folder of the evidence, whose tables and page then show it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from drift_ray.cluster import prepare_ray
from drift_ray.lineage import digest
from drift_ray.progress import console
from tests.benchmarks.evidence.collect import choose
from tests.benchmarks.evidence.plan import (
    FULL,
    PEER,
    SMOKE,
    TASKS,
    Experiment,
    Scale,
    Settings,
    finals,
    methods,
    tuning,
)

TASK = TASKS[0]
"""The one that it learns."""
ALIKE = "on_policy"
"""The method of ours that it is compared with."""


def plan(scale: Scale, best: Settings | None = None) -> list[Experiment]:
    """Its trials, or, once the best settings are known, what is reported."""
    if best is None:
        all_of_them = tuning(TASK, scale)
    else:
        all_of_them = finals(TASK, scale, {each.name: best for each in methods(scale)})
    return [replace(each, method=PEER) for each in all_of_them if each.method == ALIKE]


def known(out: Path, task: str, scale: Scale) -> list[dict[str, Any]]:
    """What was found for a task, if anything was: records of what is reported."""
    file = records_file(out, scale)
    return json.loads(file.read_text()) if task == TASK.name and file.exists() else []


def records_file(out: Path, scale: Scale) -> Path:
    """Where they lie: another file for other trials."""
    trials = digest([each.folder for each in plan(scale)])[:8]
    return out / TASK.name / f"{PEER}-{trials}.json"


def main() -> None:
    """Tune TRL's GRPO, run it for every seed, and keep the records for ``make evidence``."""
    parser = argparse.ArgumentParser(prog="evidence-trl", description=main.__doc__)
    parser.add_argument("--out", type=Path, help="that of the evidence")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, minutes")
    arguments = parser.parse_args()
    scale = SMOKE if arguments.smoke else FULL
    out = arguments.out or Path("runs/evidence-smoke" if arguments.smoke else "runs/evidence")
    prepare_ray()
    # Imports Ray, which reads its environment then: what prepare_ray has settled.
    from tests.benchmarks.evidence.peer_laboratory import PeerLaboratory
    from tests.benchmarks.evidence.run import laboratory

    with laboratory(out, TASK, scale, PeerLaboratory) as place:
        best = choose(place.run(plan(scale)))[PEER]
        records = place.run(plan(scale, best))
    records_file(out, scale).write_text(json.dumps(records))
    console.print("`make evidence` now shows it (`make evidence-smoke` after --smoke)")


if __name__ == "__main__":
    main()
