"""What all commands have in common: arguments, switches, examples, and how they speak."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from rich.console import RenderableType

    from drift_ray.config import RunConfig

EXIT_CODES = """\b
Exit codes:
  0 done            1 doctor found an error          2 usage, configuration
  3 prompts         4 model                          5 data in the run directory
  6 run directory of other settings                  7 storage
  8 a stage failed, or its input is missing         11 no cluster to join
  130 interrupted
"""

Function = TypeVar("Function", bound=Callable[..., None])

CONFIG = click.argument("config", type=click.Path(dir_okay=False), metavar="CONFIG.yaml")
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY.KEY=VALUE]...")


def _like(kind: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    return lambda context, parameter, begun: [CompletionItem(begun, type=kind)]


COMPLETE_FILES = _like("file")
"""For arguments that may be a path, without being checked as one: a run may be any URL."""
RUN = click.argument("run", shell_complete=_like("dir"))
CONFIG_OR_RUN = click.argument("config", metavar="CONFIG.yaml|RUN", shell_complete=COMPLETE_FILES)
AS_JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object; all else goes to stderr."
)
RETRY_FAILED = click.option(
    "--retry-failed", is_flag=True, help="First delete the parts that have failed trajectories."
)


def command(*, example: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command with the switches of all, and an example below its help."""

    def make(function: Callable[..., None]) -> click.Command:
        epilog = f"\b\nExample:\n  {example}\n\nExit codes: see drift-ray --help."
        made = click.command(epilog=epilog)(function)
        made.params += switches()
        return made

    return make


def switches() -> list[click.Parameter]:
    """``--quiet`` and ``--no-color``: before the command's name or after it."""

    def quiet(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value:
            _console().quiet = True

    def plain(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value:
            _console().no_color = True

    return [
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=quiet,
            help="No progress: only what was asked for, warnings and errors.",
        ),
        click.Option(
            ["--no-color"],
            is_flag=True,
            expose_value=False,
            callback=plain,
            help="As the environment variable NO_COLOR does.",
        ),
    ]


def forget_switches() -> None:
    """Speak as by default again: several commands may run in one process."""
    if "drift_ray.progress" in sys.modules:
        console = _console()
        console.quiet = console.stderr = False
        console.no_color = bool(os.environ.get("NO_COLOR"))


def no_color() -> bool:
    """Whether colours are not wanted."""
    return bool(os.environ.get("NO_COLOR")) or _console().no_color


def is_quiet() -> bool:
    """Whether progress is not wanted."""
    return _console().quiet


def say(text: str) -> None:
    """Tell how it goes, unless that is not wanted; on stderr where stdout is JSON."""
    if not is_quiet():
        click.echo(text, err=_console().stderr)


def show(result: RenderableType) -> None:
    """Print what was asked for, however quiet it shall be."""
    console = _console()
    was_quiet, console.quiet = console.quiet, False
    console.print(result)
    console.quiet = was_quiet


def speak_up() -> None:
    """What comes now was asked for, however quiet it shall be."""
    _console().quiet = False


def print_json(value: Any) -> None:
    """Print a result for a program."""
    click.echo(json.dumps(value, indent=2))


def keep_stdout_for_json() -> None:
    """From now on, what people read goes to stderr."""
    _console().stderr = True


def configured(path: str, overrides: Sequence[str]) -> RunConfig:
    """The settings of a configuration file, or those that a run directory was last used with."""
    from drift_ray.config_file import load_config
    from drift_ray.lineage import recorded_config
    from drift_ray.store import RUN_FILE, RunStore

    is_run = RunStore(path).exists(RUN_FILE)
    return recorded_config(path, overrides) if is_run else load_config(path, overrides)


def _console() -> Any:
    from drift_ray.progress import console

    return console
