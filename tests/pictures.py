"""The README's pictures of a report, taken of a run with headless Chromium.

python -m tests.pictures RUN
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.chromium import Chromium, find_chromium

FOLDER = Path(__file__).resolve().parents[1] / ".github"
WIDTH, HEIGHT = 1000, 1040

# One that went wrong first shows what a return is made of.
_CHOOSE = """
const { turn } = document.getElementById("filters").elements;
turn.value = "3";
turn.dispatchEvent(new Event("input", { bubbles: true }));
"""


def take_pictures(report: Path) -> list[Path]:
    """Save the head of the page and one trajectory as PNG; their paths."""
    head, trajectory = FOLDER / "report-head.png", FOLDER / "report-trajectory.png"
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Chromium(Path(folder)) as page:
        page.emulate(width=WIDTH, height=HEIGHT)
        page.open(report)
        page.screenshot(head, whole=False)
        page.evaluate(_CHOOSE)
        page.evaluate(
            "document.getElementById('trajectories').scrollIntoView({behavior: 'instant'})"
        )
        page.screenshot(trajectory, whole=False)
    return [head, trajectory]


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (report := Path(sys.argv[1]) / "report.html").is_file():
        sys.exit("usage: python -m tests.pictures RUN, where RUN is a run with a report.html")
    if find_chromium() is None:
        sys.exit("no Chromium or Chrome found")
    for file in take_pictures(report):
        print(f"{file} ({file.stat().st_size / 1024:.0f} KiB)")
