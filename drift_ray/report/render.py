"""Writes ``report.html``: the template, the styles, the code and the data in one file."""

from __future__ import annotations

import base64
import hashlib
import logging
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from drift_ray import __version__
from drift_ray.errors import StageError
from drift_ray.report.charts import Floats
from drift_ray.report.results import RunResults, read_results
from drift_ray.report.selection import MAX_TRAJECTORIES, select
from drift_ray.report.trajectories import Source, read_all
from drift_ray.store import ROLLOUTS, RunStore

if TYPE_CHECKING:
    import jinja2

logger = logging.getLogger(__name__)

REPORT_FILE = "report.html"
_SCRIPTS = ("data.js", "list.js", "chat.js", "arithmetic.js", "browser.js")


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A report that was written."""

    path: str
    num_bytes: int

    def __str__(self) -> str:
        size = f"{self.num_bytes / 1e6:.1f} MB" if self.num_bytes >= 1e5 else "below 0.1 MB"
        return f"report in {self.path} ({size})"


def write_report(url: str, max_trajectories: int = MAX_TRAJECTORIES) -> Written:
    """Write the report of a run into its directory; replaces an earlier one.

    Args:
        url: The run directory.
        max_trajectories: At most about so many rollouts, and so many evaluated trajectories, are
            part of it; whole prompts are left out beyond that.

    Raises:
        ConfigError: There is no run.
        DataError: A file of the run is damaged.
        StageError: The libraries that it needs are not installed.
        StorageError: It cannot be written.
    """
    results = read_results(url)
    store = RunStore(url)
    page = render(store, results, max_trajectories).encode(errors="replace")
    store.write_bytes(REPORT_FILE, page)
    return Written(path=f"{store}/{REPORT_FILE}", num_bytes=len(page))


def try_report(url: str) -> str:
    """Write the report of a run that is otherwise complete, and say what came of it."""
    try:
        return str(write_report(url))
    except Exception as error:  # whatever it is, the run's results are there
        logger.debug("no report", exc_info=True)
        return f"no report was written: {error}"


def render(store: RunStore, results: RunResults, max_trajectories: int = MAX_TRAJECTORIES) -> str:
    """The page of a run. Raises as :func:`write_report`."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise StageError(
            f"The report needs {error.name}, which is not installed.",
            "Install it: pip install 'drift-ray[report]'.",
        ) from error
    from drift_ray.report.page import make_page

    payload, shown = select(store, results, max_trajectories)
    script = _script()
    template = templates().get_template("page.html.j2")
    # Markup: what this package ships, and base64. All else is escaped.
    return template.render(
        page=make_page(results, _all_weights(store, results), shown),
        script=_markup(script),
        script_hash=_markup("sha256-" + _sha256(script)),
        streams=payload.encode(weighting=_weighting(results)),
    )


def templates() -> jinja2.Environment:
    """Templates of the pages, which know the styles and the version; needs jinja2."""
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.PackageLoader("drift_ray.report", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals.update(version=__version__, style=_markup(_asset("style.css")))
    return found


def _weighting(results: RunResults) -> dict[str, Any] | None:
    """What the arithmetic of a weight is made of."""
    if results.weights is None:
        return None
    names = ("method", "gamma", "repetition_penalty", "verdicts")
    beta = results.weights["beta"]
    one = beta["p50"] if beta and beta["min"] == beta["max"] else None
    return {**{name: results.weights["parameters"][name] for name in names}, "beta": one}


def _all_weights(store: RunStore, results: RunResults) -> Floats | None:
    if results.weights is None or not store.parts(ROLLOUTS):
        return None
    source = Source.rollouts(store, results.config.weighting.name)
    read = partial(read_all, store, source, ["importance_weight"])
    columns = [table["importance_weight"].drop_null().to_numpy() for table in read()]
    return np.concatenate(columns)


def _script() -> str:
    return '"use strict";\n(() => {\n' + "\n".join(map(_asset, _SCRIPTS)) + "})();\n"


def _asset(name: str) -> str:
    return (resources.files("drift_ray.report") / "assets" / name).read_text(encoding="utf-8")


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
