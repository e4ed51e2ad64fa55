"""The job launchers through the Jobs API: the product travels, outcomes return, nothing stays."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import psutil

from tests.integration.small_run import DEMO, ROOT, submission

REPORT = """
import os
import subprocess
import sys
from pathlib import Path

import drift_ray
import ray
from drift_ray.cli import main
from drift_ray.cluster import ray_cluster
from drift_ray.errors import ClusterError
from drift_ray.joining import check_job_server


def refused(what, **environment):
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        with ray_cluster(None):
            print("joined")
    except ClusterError as error:
        print(f"{what}: {error.message}")
    os.environ.clear()
    os.environ.update(before)


refused("nobody", RAY_ADDRESS="127.0.0.1:1")
refused("wrong token", RAY_AUTH_TOKEN="wrong")
head = f"http://{ray.init().dashboard_url}"
check_job_server(head)
submit = [Path(sys.executable).with_name("ray"), "job", "submit", "--working-dir", "."]
command = "-- python jobs/pipeline.py --config jobs/configs/demo.yaml seed=-1".split()
environment = os.environ | {"RAY_API_SERVER_ADDRESS": head}
subprocess.run([*submit, *command], cwd=ROOT, env=environment, stderr=subprocess.STDOUT)

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
    "task.train.num_prompts=2",
    "rollout.group_size=2",
    "replicas.num_replicas=1",
    "task.environment.path=mine:Noting",
    "task.grader=mine:grade",
)


def test_job_runs_the_submitted_code_and_fails_with_its_exit_code(tmp_path: Path) -> None:
    script = tmp_path / "report.py"
    script.write_text(f"ROOT = {str(ROOT)!r}\n{REPORT}")
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
    # What it saw of the head before that, and what became of `ray job submit --working-dir .`.
    assert "nobody: No Ray head answers at RAY_ADDRESS 127.0.0.1:1" in output
    assert re.search(r"^wrong token: The Ray head at \S+ does not take the token", output, re.M)
    assert "jobs/configs/demo.yaml with the overrides given has wrong settings" in output


def test_pipeline_job_leaves_a_trained_model(finished_job: tuple[Path, str]) -> None:
    run, output = finished_job
    assert f"job drift-ray-{run.name}: SUCCEEDED" in output
    assert (run / "model" / "config.json").is_file()
    assert (run / "evaluation" / "trained" / "metrics.json").is_file()
    assert f"results in {run}" in output
    assert (run / "report.html").is_file()


def test_code_of_ones_own_travels_to_every_process(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (tmp_path / "mine.py").write_text(MINE.format(folder=str(notes)))
    script = ("--script", str(ROOT / "jobs" / "rollout.py"), "--with", "mine.py")
    arguments = ("--config", str(DEMO), "--run", str(tmp_path / "runs" / "own"), *TINY)
    with submission(tmp_path, *script, *arguments) as process:
        output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
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
