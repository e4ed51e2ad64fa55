"""How the page's plots are drawn: SVG whose colours are the page's own, in light and in dark.

Matplotlib draws with placeholder colours, which become CSS variables afterwards. Text stays text.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SERIES = ("before", "olive", "violet", "after", "blue", "alert", "rose", "ink")
"""Names of colours that tell several lines apart."""
COLORS = {
    name: f"#{number:02x}fe{number:02x}"
    for number, name in enumerate(dict.fromkeys(("ink", "muted", "line", *SERIES)), 1)
}
"""Placeholders by name; ``style.css`` says what they are."""
_SIZE_INCHES = (4.6, 2.8)
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10.0,
    "text.color": COLORS["ink"],
    "axes.edgecolor": COLORS["line"],
    "axes.labelcolor": COLORS["muted"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLORS["line"],
    "grid.linewidth": 0.7,
    "xtick.color": COLORS["line"],
    "ytick.color": "none",
    "xtick.labelcolor": COLORS["muted"],
    "ytick.labelcolor": COLORS["muted"],
    "figure.facecolor": "none",
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One plot with its words."""

    title: str
    svg: str
    """An ``<svg>`` element."""
    note: str = ""
    keys: Sequence[tuple[str, str]] = ()
    """Legend: colour's name and text."""


def percent_axes(axes: Axes, label: str) -> None:
    """Shares on the vertical axis, and what the other one shows."""
    axes.yaxis.set_major_formatter(as_percent)
    axes.set_xlabel(label)


def as_percent(value: float, _: float) -> str:
    """A tick's label."""
    return f"{100 * value:.3g} %"


def svg(draw: Callable[[Axes], None], title: str) -> str:
    """An ``<svg>`` element of what is drawn.

    Args:
        draw: Called with the axes.
        title: Other plots of the page have others.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # The salt keeps ids of different plots in one page apart, and the page the same every time.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=_SIZE_INCHES)
        FigureCanvasSVG(figure)
        # A layout engine would take as long as the rest.
        axes = figure.add_axes((0.12, 0.2, 0.84, 0.76))
        axes.tick_params(length=0, pad=6)
        draw(axes)
        sink = io.StringIO()
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    return _themed(sink.getvalue(), title)


def _themed(document: str, title: str) -> str:
    found = document[document.index("<svg") :]
    found = re.sub(r"<metadata>.*?</metadata>", "", found, flags=re.DOTALL)
    # The page gives it its width, and the font; its shape stands in the viewBox.
    found = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', found, count=1)
    found = re.sub(r"<style.*?</style>", "", found, flags=re.DOTALL)
    found = re.sub(r" font-family: [^;\"]*;", "", found)
    # Ids are to be unique in the page.
    prefix = hashlib.blake2b(title.encode(), digest_size=4).hexdigest()
    found = re.sub(r"(id=\"|url\(#|href=\"#)", rf"\1c{prefix}-", found)
    for name, color in COLORS.items():
        found = found.replace(color, f"var(--{name})")
    return found
