"""The grading pool with real processes: a case that hangs, crashes or raises is its own problem."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from drift_ray.errors import ConfigError, GradingError
from drift_ray.tasks import grading_pool
from drift_ray.tasks.grading_channel import Channel, ChannelClosed
from drift_ray.tasks.grading_pool import GradingPool
from drift_ray.tasks.grading_worker import BEGUN, END, READY, TAKE_BACK, VERDICT
from drift_ray.types import Verdict

MOODY = "tests.unit.judges:moody"
DEADLINE_S = 1.0
CAUSES = {"hang": "deadline", "exit": "crash", "segfault": "crash", "raise": "exception"}


class Bomb(str):
    """A text that ends the process that reads it."""

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (6,)


@pytest.fixture(scope="module")
def pool() -> Iterator[GradingPool]:
    with GradingPool(MOODY, num_workers=2, deadline_s=DEADLINE_S) as made:
        yield made


def gone(pid: int, timeout_s: float = 30.0) -> bool:
    """Wait for a process to end that need not be a child."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], timeout_s)[0])
    finally:
        os.close(handle)


@pytest.mark.parametrize(("answer", "cause"), CAUSES.items())
def test_one_case_fails_and_the_next_is_graded(pool: GradingPool, answer: str, cause: str) -> None:
    with pytest.raises(GradingError, match=f"answer '{answer}', gold 'x'") as caught:
        pool.grade(answer, "x")
    assert caught.value.cause == cause
    assert ("not today" in caught.value.trace) is (answer == "raise")
    assert pool.grade("x", "x") == Verdict(correct=True, valid=True, normalized="x")


def test_failures_stay_in_their_place(pool: GradingPool) -> None:
    answers = [*(["x"] * 100), "exit", *(["y"] * 50), "hang", "raise", *(["x"] * 100), "segfault"]
    results = pool.grade_many([(answer, "x") for answer in answers])
    assert len(results) == len(answers)
    for answer, result in zip(answers, results, strict=True):
        if isinstance(result, GradingError):
            assert result.cause == CAUSES[answer]
            assert repr(answer) in str(result)
        else:
            assert result.correct is (answer == "x")
            assert answer not in CAUSES


def test_many_threads_at_once(pool: GradingPool) -> None:
    answers = ["x", "y", "raise", "x", "exit"] * 40

    def grade(answer: str) -> str:
        try:
            return str(pool.grade(answer, "x").correct)
        except GradingError as error:
            return error.cause

    with ThreadPoolExecutor(32) as threads:
        results = list(threads.map(grade, answers))
    assert results == ["True", "False", "exception", "True", "crash"] * 40


def test_a_case_that_hangs_holds_up_nobody() -> None:
    with ThreadPoolExecutor(1) as thread:
        with GradingPool(MOODY, num_workers=2, deadline_s=600.0) as pool:
            hanging = thread.submit(pool.grade_many, [("hang", "x"), *([("x", "x")] * 200)])
            results = pool.grade_many([("x", "x")] * 200)
            assert all(isinstance(result, Verdict) for result in results)
            assert not hanging.done()
        with pytest.raises(RuntimeError, match="closed"):
            hanging.result()


class HesitantProcess:
    """Begins no second case until the first batch is taken back; then it is like any other."""

    def __init__(self, choice: str) -> None:
        near, far = socket.socketpair()
        self.channel = Channel(near)
        self._far = far
        threading.Thread(target=self._serve, args=[Channel(far)], daemon=True).start()

    def _serve(self, channel: Channel) -> None:
        verdict = (VERDICT, True, True, "x")
        channel.send((READY, 1))
        channel.receive()
        for reply in ((BEGUN,), verdict):
            channel.send(reply)
        assert channel.receive() == TAKE_BACK
        channel.send((END,))
        with suppress(ChannelClosed, OSError):
            while batch := channel.receive():
                for reply in ((BEGUN,), *[verdict] * len(batch), (END,)):
                    channel.send(reply)

    def start(self, timeout_s: float) -> None:
        pass

    def interrupt(self) -> None:
        self._far.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.channel.close()


def test_a_case_that_is_taken_back_before_it_begins_is_graded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grading_pool, "GradingProcess", HesitantProcess)
    monkeypatch.setattr(grading_pool, "SLOW_S", 0.01)
    with GradingPool(MOODY, num_workers=1, deadline_s=60.0) as pool:
        results = pool.grade_many([("x", "x")] * 20)
    assert results == [Verdict(correct=True, valid=True, normalized="x")] * 20


def test_a_process_killed_while_idle_costs_no_case(pool: GradingPool) -> None:
    before = pool.pids
    assert before
    for pid in before:
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
    results = pool.grade_many([("x", "x")] * 50)
    assert sum(isinstance(result, Verdict) for result in results) == 50
    assert set(pool.pids) != set(before)


def test_processes_killed_at_any_moment_cost_what_they_graded() -> None:
    num_kills, chance = 40, random.Random(5)
    # Messages that take a while to be read: many processes die in the middle of one.
    answers = [f"{i} " + "x" * 40_000 for i in range(1_200)]
    graded = threading.Event()
    num_killed = 0
    with (
        GradingPool(MOODY, num_workers=2, deadline_s=30.0) as pool,
        ThreadPoolExecutor(1) as thread,
    ):
        results = thread.submit(pool.grade_many, [(answer, answer) for answer in answers])
        results.add_done_callback(lambda _: graded.set())
        while num_killed < num_kills and not graded.wait(chance.expovariate(200.0)):
            for pid in pool.pids[:1]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    num_killed += 1
        found = results.result(timeout=60.0)
    failed = [each for each in found if isinstance(each, GradingError)]
    right = [each.correct for each in found if isinstance(each, Verdict)]
    assert all(right)
    assert len(right) + len(failed) == len(answers)
    assert len(failed) <= num_killed
    assert {each.cause for each in failed} <= {"crash"}
    assert num_killed > 10


def test_a_case_that_no_process_can_read_fails() -> None:
    with GradingPool(MOODY, num_workers=1, deadline_s=DEADLINE_S) as pool:
        unreadable = pool.grade_many([(Bomb("x"), "x"), ("x", "x")])
        assert isinstance(unreadable[0], GradingError)
        assert unreadable[0].cause == "crash"
        assert isinstance(unreadable[1], Verdict)


def test_a_dead_supervisor_is_replaced(pool: GradingPool) -> None:
    for pid in pool.pids:
        supervisor = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(supervisor, signal.SIGKILL)
        assert gone(pid)
    results = pool.grade_many([("x", "x")] * 50)
    assert sum(isinstance(result, Verdict) for result in results) == 50


def test_what_graders_print_does_no_harm(pool: GradingPool) -> None:
    assert not pool.grade("print", "x").correct


def test_texts_cross_whole(pool: GradingPool) -> None:
    text = "\ud800 \0 \n π" + "9" * 300_000
    assert pool.grade(text, text).correct
    assert pool.grade_many([]) == []


def test_an_unusable_grader_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="has no 'kind'"):
        GradingPool("tests.unit.judges:kind", num_workers=2, deadline_s=DEADLINE_S)
    with pytest.raises(ConfigError, match="unknown grader"):
        GradingPool("mth", num_workers=2, deadline_s=DEADLINE_S)


def test_a_grader_that_cannot_be_loaded_breaks_the_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judge_that_dies.py").write_text("import os\nos._exit(4)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(GradingError, match=r"cannot be loaded.*exit code 4") as caught:
        GradingPool("judge_that_dies:fair", num_workers=1, deadline_s=DEADLINE_S)
    assert caught.value.cause == "crash"


def test_a_pool_that_cannot_replace_its_processes_fails_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judge_once.py").write_text(
        "import os, pathlib\n"
        "used = pathlib.Path(__file__).with_suffix('.used')\n"
        "used.exists() and os._exit(4)\n"
        "def judge(answer, gold):\n"
        "    used.touch()\n"
        "    os._exit(3)\n"
    )
    # The parent looks only at the path, not into the module.
    monkeypatch.syspath_prepend(tmp_path)
    with GradingPool("judge_once:judge", num_workers=1, deadline_s=DEADLINE_S) as pool:
        results = pool.grade_many([("x", "x")] * 3)
        with pytest.raises(GradingError, match="exit code 4"):
            pool.grade("x", "x")
    assert [each.cause for each in results if isinstance(each, GradingError)] == ["crash"] * 3
    assert "exit code 3" in str(results[0])
    assert "no process can grade" in str(results[2])


def test_closing_ends_processes_and_waiting_cases() -> None:
    pool = GradingPool(MOODY, num_workers=1, deadline_s=600.0)
    pids = pool.pids
    with ThreadPoolExecutor(2) as threads:
        cases = [threads.submit(pool.grade, "hang", "x") for _ in range(2)]
        pool.close()
        for case in cases:
            with pytest.raises(RuntimeError, match="closed"):
                case.result()
    assert all(map(gone, pids))
    with pytest.raises(RuntimeError, match="closed"):
        pool.grade("x", "x")


def test_processes_die_with_their_parent_even_while_they_hang() -> None:
    script = (
        "import json; from drift_ray.tasks.grading_pool import GradingPool\n"
        f"pool = GradingPool({MOODY!r}, num_workers=1, deadline_s=600.0)\n"
        "print(json.dumps(pool.pids), flush=True); pool.grade('hang', 'x')\n"
    )
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert parent.stderr is not None
    pids = json.loads(parent.stdout.readline())
    assert parent.stderr.readline() == "hanging\n"
    parent.kill()
    parent.communicate()
    assert len(pids) == 1
    assert gone(pids[0])
