"""Worker processes for graders that may hang, crash or raise: each costs its own case only.

Every process is served by a thread of its own, which takes a few cases from the common queue,
sends them in one message, and reads the verdicts one by one. The first case without a verdict is
therefore the one being graded: when its deadline passes or its process dies, that case fails,
the process is replaced, and the cases behind it go back to the head of the queue.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from drift_ray.errors import ConfigError, GradingError
from drift_ray.grader_config import GraderConfig, canonical_text, parse_grader
from drift_ray.tasks.grading_case import Batch, Case
from drift_ray.tasks.grading_channel import Channel, ChannelClosed
from drift_ray.tasks.grading_process import GradingProcess, SupervisorEnded
from drift_ray.tasks.grading_worker import END, READY, REFUSED, TAKE_BACK
from drift_ray.types import Verdict

MAX_BATCH = 32
"""Cases in one message."""
SLOW_S = 0.1
"""A case that takes longer gives the cases behind it back to the other processes."""
START_TIMEOUT_S = 120.0
"""For a process to load its grader, on a machine that is busy."""
MAX_FAILED_STARTS = 3
"""In a row, before the pool gives up."""
MAX_LOST = 3
"""Processes that may die with a case at the head of their batch, before they begin it."""


class GradingPool:
    """A fixed number of grading processes, shared by any number of threads.

    Args:
        choice: The grader, as ``get_grader`` takes it.
        num_workers: Processes.
        deadline_s: Time one case may take, counted from when its grading begins.

    Raises:
        ConfigError: The grader does not exist or cannot be loaded.
        GradingError: Processes cannot be started.
    """

    def __init__(
        self,
        choice: str | Mapping[str, Any] | GraderConfig,
        *,
        num_workers: int,
        deadline_s: float,
    ) -> None:
        self._choice = canonical_text(parse_grader(choice))
        self._deadline_s = deadline_s
        self._lock = threading.Condition()
        self._queue: deque[Case] = deque()
        self._processes: dict[GradingProcess, int] = {}
        self._closed = False
        self._broken: ConfigError | GradingError | None = None
        self._is_up = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name=f"grading-{index}", daemon=True)
            for index in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()
        self._is_up.wait()
        if self._broken is not None:
            self.close()
            raise self._broken

    def __enter__(self) -> GradingPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of the grading processes that are ready."""
        with self._lock:
            return sorted(pid for pid in self._processes.values() if pid)

    def grade(self, answer: str, gold: str) -> Verdict:
        """Grade one answer and wait for the verdict; for any thread, and itself a ``Grader``.

        Raises:
            GradingError: This answer cannot be graded; ``cause`` says whether its deadline passed,
                its process died, or the grader raised.
            RuntimeError: The pool is closed.
        """
        case = Case(answer, gold)
        self._submit([case])
        return case.future.result()

    def grade_many(self, pairs: Iterable[tuple[str, str]]) -> list[Verdict | GradingError]:
        """Grade pairs of answer and gold, and wait for all of them.

        Returns:
            In the order of ``pairs``, a verdict or what prevented it.

        Raises:
            RuntimeError: The pool is closed.
        """
        cases = [Case(answer, gold) for answer, gold in pairs]
        self._submit(cases)
        results: list[Verdict | GradingError] = []
        for case in cases:
            try:
                results.append(case.future.result())
            except GradingError as error:
                results.append(error)
        return results

    def close(self) -> None:
        """Kill the processes; cases that are not graded yet raise ``RuntimeError``."""
        with self._lock:
            self._closed = True
            waiting = list(self._queue)
            self._queue.clear()
            for process in self._processes:
                process.interrupt()
            self._lock.notify_all()
        self._abandon(waiting)
        for thread in self._threads:
            thread.join()

    def _submit(self, cases: list[Case]) -> None:
        with self._lock:
            if self._broken is not None:
                raise self._broken
            if self._closed:
                raise _closed_error()
            self._queue.extend(cases)
            self._lock.notify(len(cases))

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            # A thread that is gone without a word would leave its callers waiting for ever.
            self._give_up(GradingError(f"a thread of the pool ended: {error!r}", cause="crash"))
            raise

    def _serve(self) -> None:
        """Keep one process alive and at work until the pool is closed."""
        failed_starts = 0
        while failed_starts < MAX_FAILED_STARTS and (process := self._launch()) is not None:
            problem = None
            try:
                while (problem := self._start(process)) is None:
                    failed_starts = 0
                    self._is_up.set()
                    if not self._work(process):
                        break
            finally:
                with self._lock:
                    self._processes.pop(process)
                process.close()
            if problem is not None:
                failed_starts += 1
                if isinstance(problem, ConfigError) or failed_starts == MAX_FAILED_STARTS:
                    self._give_up(problem)

    def _launch(self) -> GradingProcess | None:
        with self._lock:
            if self._closed or self._broken is not None:
                return None
            try:
                process = GradingProcess(self._choice)
            except OSError as error:  # no memory, no process id left
                problem = GradingError(f"cannot start a grading process: {error}", cause="crash")
            else:
                self._processes[process] = 0
                return process
        self._give_up(problem)
        return None

    def _start(self, process: GradingProcess) -> ConfigError | GradingError | None:
        """None once the process can grade, else why it cannot."""
        try:
            process.start(START_TIMEOUT_S)
            kind, *details = process.channel.receive(START_TIMEOUT_S)
        except TimeoutError:
            what = f"did not load within {START_TIMEOUT_S:g} s"
            return GradingError(f"grader {self._choice} {what}", cause="deadline")
        except (SupervisorEnded, ChannelClosed):
            what = f"cannot be loaded: its process died ({_ending(process)})"
            hint = "Its output on standard error says why."
            return GradingError(f"grader {self._choice} {what}", hint, cause="crash")
        if kind == REFUSED:
            return ConfigError(*details)
        assert kind == READY
        with self._lock:
            self._processes[process] = details[0]
        return None

    def _give_up(self, problem: ConfigError | GradingError) -> None:
        with self._lock:
            if self._closed:
                return
            self._broken = problem
            waiting = list(self._queue)
            self._queue.clear()
            self._lock.notify_all()
        self._abandon(waiting)
        self._is_up.set()

    def _abandon(self, cases: list[Case]) -> None:
        """Fail cases that no process will grade any more."""
        for case in cases:
            if self._broken is not None:
                case.fail("crash", f"no process can grade: {self._broken.message}")
            else:
                case.future.set_exception(_closed_error())

    def _take(self) -> list[Case]:
        """Cases for one message, as soon as there are any; none once the pool is closed."""
        with self._lock:
            self._lock.wait_for(lambda: self._queue or self._closed or self._broken)
            fair = len(self._queue) // (2 * len(self._threads))
            size = min(len(self._queue), MAX_BATCH, max(1, fair))
            return [self._queue.popleft() for _ in range(size)]

    def _give_back(self, cases: list[Case]) -> None:
        with self._lock:
            if not self._closed and self._broken is None:
                self._queue.extendleft(reversed(cases))
                self._lock.notify(len(cases))
                return
        self._abandon(cases)

    def _work(self, process: GradingProcess) -> bool:
        """Feed a process until it has ended; False if the pool is closed before that."""
        while cases := self._take():
            batch = Batch(deque(cases))
            try:
                self._grade(process.channel, batch)
            except Exception as error:
                with self._lock:
                    self._processes[process] = 0
                self._settle_lost(batch, error, _ending(process))
                if not isinstance(error, ChannelClosed | TimeoutError):
                    raise
                return True
        return False

    def _grade(self, channel: Channel, batch: Batch) -> None:
        """Have a batch graded.

        Raises:
            ChannelClosed: The process is dead.
            TimeoutError: A case hangs, or the process does.
        """
        cases = batch.waiting
        channel.send([(case.answer, case.gold) for case in cases], START_TIMEOUT_S)
        channel.receive(START_TIMEOUT_S)
        batch.has_begun = True
        while cases:
            batch.running = cases.popleft()
            reply = self._await_reply(channel, cases)
            if reply[0] == END:
                # It was slow to begin, not to grade: taken back with those behind it.
                self._give_back([batch.running])
                batch.running = None
                return
            batch.running.settle(reply)
            batch.running = None
        # Later replies are to cases that were taken back a moment too late.
        while channel.receive(self._deadline_s)[0] != END:
            pass

    def _await_reply(self, channel: Channel, behind: deque[Case]) -> tuple[Any, ...]:
        """The running case's reply; if it is slow, the cases behind it need not wait for it."""
        patience_s = min(SLOW_S, self._deadline_s)
        try:
            return channel.receive(patience_s)
        except TimeoutError:
            if behind:
                self._give_back(list(behind))
                behind.clear()
                with suppress(ChannelClosed):  # its last reply may be there all the same
                    channel.send(TAKE_BACK, self._deadline_s)
            return channel.receive(self._deadline_s - patience_s)

    def _settle_lost(self, batch: Batch, error: Exception, ending: str) -> None:
        """Fail the case that ended its process, and give back those behind it."""
        culprit, waiting = batch.running, batch.waiting
        if not batch.has_begun:
            # Its process may have been killed while it was idle, or by what this case holds.
            waiting[0].num_lost += 1
            if waiting[0].num_lost == MAX_LOST:
                culprit = waiting.popleft()
        self._give_back(list(waiting))
        if culprit is None:
            return
        if self._closed:
            culprit.future.set_exception(_closed_error())
        elif isinstance(error, TimeoutError) and batch.has_begun:
            culprit.fail("deadline", f"grading took longer than {self._deadline_s:g} s")
        else:
            culprit.fail("crash", f"the grading process died ({ending})")


def _ending(process: GradingProcess) -> str:
    """Stop a process, and say how it ended."""
    try:
        return process.stop()
    except SupervisorEnded:
        return "its supervisor died"
    except TimeoutError:
        return "its supervisor does not react"


def _closed_error() -> RuntimeError:
    return RuntimeError("the grading pool is closed")
