"""The command that looks for what would stop a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from drift_ray.cli.commands import (
    AS_JSON,
    CONFIG_OR_RUN,
    OVERRIDES,
    command,
    configured,
    is_quiet,
    print_json,
    show,
)

if TYPE_CHECKING:
    from drift_ray.doctor.findings import Finding

_STYLES = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}


@command(example="drift-ray doctor builtin:demo run=s3://bucket/runs/first")
@CONFIG_OR_RUN
@OVERRIDES
@AS_JSON
def doctor(config: str, overrides: Sequence[str], as_json: bool) -> None:
    """Look for what would stop a run: each finding with its remedy.

    Python and packages, vLLM, memory against the model's size, storage, Ray (only if RAY_ADDRESS
    is set), tokenizer and chat template, a few rows of every prompt set and their grader. Starts
    neither Ray nor vLLM and leaves nothing behind; a model of the hub is downloaded. Exit code 1
    if there is an error; --quiet leaves out what is well.
    """
    from drift_ray.doctor.diagnosis import diagnose, is_healthy

    found = []
    for finding in diagnose(configured(config, overrides)):
        found.append(finding)
        if not as_json and not (is_quiet() and finding.level == "ok"):
            _show(finding)
    if as_json:
        print_json({"healthy": is_healthy(found), "findings": [asdict(each) for each in found]})
    if not is_healthy(found):
        click.get_current_context().exit(1)


def _show(finding: Finding) -> None:
    from rich.text import Text

    mark, style = _STYLES[finding.level]
    text = Text.assemble((mark, style), f" {finding.check}: {finding.message}")
    if finding.remedy:
        text.append(f"\n  → {finding.remedy}")
    show(text)
