"""All commands under one name, and what becomes of their errors."""

from __future__ import annotations

from collections.abc import Sequence

import click

from drift_ray import __version__
from drift_ray.cli import amend, example, health, look, stages
from drift_ray.cli.commands import EXIT_CODES, forget_switches, no_color, switches
from drift_ray.errors import EXIT_INTERRUPTED, DriftRayError, StageError

PROGRAM = "drift-ray"
_IN_EXTRAS = {"ray", "safetensors", "torch", "transformers", "vllm"}
"""Imported by stages, but not installed with the light core."""
COMPLETION = """\b
Completion in the shell, in ~/.bashrc, ~/.zshrc or config.fish:
  eval "$(_DRIFT_RAY_COMPLETE=bash_source drift-ray)"
  eval "$(_DRIFT_RAY_COMPLETE=zsh_source drift-ray)"
  _DRIFT_RAY_COMPLETE=fish_source drift-ray | source
"""


class _InOrder(click.Group):
    """Lists its commands in the order in which they are needed, not in that of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_InOrder,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"{EXIT_CODES}\n{COMPLETION}",
)
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """DRIFT on Ray: multi-turn rollouts, importance weights, weighted fine-tuning.

    Every stage takes a YAML file and dotted overrides, for example

        drift-ray run builtin:demo run=runs/first weighting.beta=0.2

    Finished work is skipped, interrupted work continues: run the same command again.
    --dry-run shows what is done and what would be.
    """


for _command in (
    *(example.example, health.doctor),
    *(stages.run, stages.rollout, stages.weigh, stages.train, stages.evaluate),
    *(look.status, amend.scale, look.compare, look.report, look.inspect),
    *(amend.rescore, amend.topup),
):
    cli.add_command(_command)
cli.params += switches()


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (see :data:`EXIT_CODES`), errors printed."""
    forget_switches()
    try:
        code = cli.main(
            args=None if args is None else list(args),
            prog_name=PROGRAM,
            standalone_mode=False,
        )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo(
            "\nInterrupted. What is committed stays: run the same command to go on.", err=True
        )
        return EXIT_INTERRUPTED
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _IN_EXTRAS:
            raise
        return _refuse(
            StageError(
                f"This needs {package}, which is not installed.",
                "Install drift-ray[cpu] or drift-ray[gpu], each in an environment of its own.",
            )
        )
    except DriftRayError as error:
        return _refuse(error)
    return code or 0


def _refuse(error: DriftRayError) -> int:
    from drift_ray.store import hide_login

    said = hide_login(f"error: {error}")
    click.secho(said, fg="red", err=True, color=False if no_color() else None)
    return error.exit_code
