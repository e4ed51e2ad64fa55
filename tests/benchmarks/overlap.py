"""What pipeline.overlap saves: the demo's rollouts, weights and training, one core for each side.

    python tests/benchmarks/overlap.py [--prompts 600] [--json FILE]

Two commands, each with a private Ray and an empty run directory: the stages one after the other,
and the training beside the rollouts. ``wall_s`` is a whole command, imports and start of Ray
included; times of stages are what the command prints.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_STEP = re.compile(r"✓ ([\w ]+): .*\(([\d.]+) s\)")
_STAGES = """
import sys
from drift_ray.config_file import load_config
from drift_ray.pipeline import Pipeline, Stage
Pipeline(load_config(sys.argv[1], sys.argv[2:])).run({Stage.ROLLOUT, Stage.WEIGH, Stage.TRAIN})
"""


def run_stages(num_prompts: int, *, overlap: bool) -> dict[str, object]:
    """Rollouts to model in one process; how long that took."""
    folder = Path(tempfile.mkdtemp(prefix="drift_ray-bench-"))
    arguments = [
        str(ROOT / "jobs/configs/demo.yaml"),
        f"run={folder}/run",
        f"task.train.num_prompts={num_prompts}",
        "rollout.prompts_per_part=15",
        "replicas.num_replicas=1",
        "training.num_workers=1",
        f"pipeline.overlap={str(overlap).lower()}",
    ]
    started = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-c", _STAGES, *arguments], capture_output=True, text=True, cwd=ROOT
        )
        wall_s = time.perf_counter() - started
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        summary = json.loads((folder / "run/model/drift_ray.json").read_text())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "wall_s": round(wall_s, 1),
        "stages_s": {name: float(seconds) for name, seconds in _STEP.findall(done.stdout)},
        "num_waves": summary["num_waves"],
        "num_steps": summary["num_steps"],
    }


def main() -> None:
    """Print both, and how near the overlapped one comes to the longer stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    sequential = run_stages(arguments.prompts, overlap=False)
    overlapped = run_stages(arguments.prompts, overlap=True)
    stages = sequential["stages_s"]
    assert isinstance(stages, dict)
    longer = max(("rollout", "train"), key=lambda name: stages[name])
    start_up_s = round(float(str(sequential["wall_s"])) - sum(stages.values()), 1)
    result = {
        "num_trajectories": 8 * arguments.prompts,
        "sequential": sequential,
        "overlapped": overlapped,
        "longer_stage": longer,
        "longer_stage_s": stages[longer],
        "start_up_s": start_up_s,
    }
    print(f"sequential         {sequential['wall_s']:>7} s  {stages}")
    print(f"overlapped         {overlapped['wall_s']:>7} s  {overlapped['stages_s']}")
    print(f"longer stage alone {stages[longer]:>7} s  ({longer}), and {start_up_s} s of start-up")
    print(json.dumps(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
