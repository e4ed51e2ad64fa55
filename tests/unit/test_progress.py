"""What a person sees while a stage works."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from drift_ray import progress
from drift_ray.progress import StageProgress


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_bar_tells_the_time_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, output = Clock(), io.StringIO()
    console = Console(file=output, force_terminal=True, width=120, get_time=clock)
    monkeypatch.setattr(progress, "console", console)
    # 40 of the 100 steps are of an earlier attempt: they took this one no time.
    with StageProgress("train", total=100, unit="steps", done=40) as bar:
        bar.update(40, "loss 0.9")
        for done in range(41, 61):
            clock.now_s += 2.0
            bar.update(done, "loss 0.5")
    last = output.getvalue().rsplit("train", 1)[1]
    assert "60/100" in last
    assert "loss 0.5" in last
    assert "0:01:20" in last
