"""What a person sees while a stage works: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(highlight=False, soft_wrap=True)
_LOG_EVERY_S = 10.0


class StageProgress:
    """Progress of one stage. Use as a context manager.

    Args:
        stage: Name shown in front.
        total: Number of units of work.
        done: Units already there from an earlier run.
        unit: What is counted.
    """

    def __init__(self, stage: str, *, total: int, unit: str, done: int = 0) -> None:
        self._stage = stage
        self._unit = unit
        self._total = total
        self._done = done
        self._last_line_s = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{unit} {{task.fields[note]}}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(stage, total=total, completed=done, note="")

    def __enter__(self) -> StageProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        error: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, units: int, note: str = "") -> None:
        """Count finished units; ``note`` says how it goes."""
        self.update(self._done + units, note)

    def update(self, done: int, note: str = "") -> None:
        """Set the number of finished units."""
        moved, self._done = done != self._done, done
        self._bar.update(self._task, completed=done, note=note)
        now = time.monotonic()
        if not console.is_terminal and moved and now - self._last_line_s >= _LOG_EVERY_S:
            self._last_line_s = now
            console.print(f"{self._stage}: {done}/{self._total} {self._unit} {note}".rstrip())
