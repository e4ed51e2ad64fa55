"""The job launchers through the Jobs API: the product travels, outcomes return, nothing stays."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]

REPORT = """
import sys
import drift_ray
import ray
from drift_ray.cli import main

ray.init()
where = ray.remote(lambda: drift_ray.__file__)
print("driver:", drift_ray.__file__)
print("worker:", ray.get(where.remote()))
print("arguments:", sys.argv[1:])
sys.exit(main(["run", sys.argv[2], *sys.argv[3:]]))  # there is no such file
"""

WAIT = """
import time

print("job is running", flush=True)
try:
    time.sleep(600)
except KeyboardInterrupt:
    print("job was asked to stop", flush=True)
"""

# Notes which process imports it, runs its environment, grades.
MINE = """
import os
from pathlib import Path

from drift_ray.tasks.environment import UnaryFeedbackEnvironment


def note(what):
    Path({folder!r}, f"{{what}}-{{os.getpid()}}").write_text(__file__)


note("import")


class Noting(UnaryFeedbackEnvironment):
    def reset(self):
        note("environment")
        return super().reset()


def grade(answer, gold):
    note("grader")
    return answer.strip() == gold
"""

TINY = (
    "task.train.num_prompts=8",
    "task.test.num_prompts=8",
    "rollout.group_size=4",
    "replicas.num_replicas=1",
    "training.num_workers=1",
)


@contextmanager
def submission(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``jobs/submit_local.py`` in a session and a temporary folder of its own."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / "submit_local.py"), *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=120)


def test_job_runs_the_submitted_code_and_fails_with_its_exit_code(tmp_path: Path) -> None:
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    arguments = ("--script", str(script), "--config", "a.yaml", "--run", "runs/first", "seed=3")
    with submission(tmp_path, *arguments) as process:
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 2, output  # the exit code of a ConfigError
    files = dict(re.findall(r"^(driver|worker): (.+)$", output, flags=re.MULTILINE))
    assert files["driver"] == files["worker"]
    assert not Path(files["driver"]).is_relative_to(ROOT)
    given = ["--config", str(tmp_path / "a.yaml"), f"run={tmp_path / 'runs/first'}", "seed=3"]
    assert f"arguments: {given}" in output
    assert f"error: No configuration file at {tmp_path / 'a.yaml'}" in output
    assert "job drift-ray-first: FAILED" in output


def test_pipeline_job_with_code_of_ones_own_leaves_a_trained_model(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    notes = tmp_path / "notes"
    notes.mkdir()
    (tmp_path / "mine.py").write_text(MINE.format(folder=str(notes)))
    own = ("task.environment.path=mine:Noting", "task.grader=mine:grade")
    arguments = ("--config", str(ROOT / "jobs/configs/demo.yaml"), "--run", str(run), *TINY, *own)
    with submission(tmp_path, "--with", "mine.py", *arguments) as process:
        output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert "job drift-ray-tiny: SUCCEEDED" in output
    assert (run / "model" / "config.json").is_file()
    assert (run / "evaluation" / "trained" / "metrics.json").is_file()
    assert f"results in {run}" in output
    pids: dict[str, set[str]] = {}
    for file in notes.iterdir():
        assert Path(file.read_text()).parent != tmp_path, "the job did not use its own copy"
        what, _, pid = file.name.partition("-")
        pids.setdefault(what, set()).add(pid)
    assert pids["environment"].isdisjoint(pids["grader"])
    assert pids["import"] > pids["environment"] | pids["grader"], "the driver imports it, too"


def test_interrupt_stops_the_job_and_the_head(tmp_path: Path) -> None:
    script = tmp_path / "wait.py"
    script.write_text(WAIT)
    arguments = ("--script", str(script), "--config", "a.yaml", "--run", "runs/first")
    with submission(tmp_path, *arguments) as process:
        assert process.stdout is not None
        before = []
        for line in process.stdout:
            before.append(line)
            if line == "job is running\n":
                break
        started = psutil.Process(process.pid).children(recursive=True)
        assert any(child.name() == "raylet" for child in started), before
        process.send_signal(signal.SIGINT)
        after, _ = process.communicate(timeout=120)
    assert process.returncode == 130, after
    assert "job was asked to stop" in after
    assert "job drift-ray-first: STOPPED" in after
    assert [child for child in started if child.is_running()] == []
