"""The command that shows the configurations which come with the package."""

from __future__ import annotations

import click

from drift_ray.cli.commands import command


def _names(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    from drift_ray.config_file import builtin_configs

    return [name for name in builtin_configs() if name.startswith(begun)]


@command(example="drift-ray example demo")
@click.argument("name", required=False, shell_complete=_names)
def example(name: str | None) -> None:
    """Print a configuration to start one of your own from.

    NAME is one that comes with the package; without it: what there is. As builtin:NAME each of them
    runs as it is.
    """
    from drift_ray.config_file import BUILTIN, builtin_config, builtin_configs

    if name is None:
        click.echo("\n".join(builtin_configs()))
    else:
        click.echo(builtin_config(name.removeprefix(BUILTIN)), nl=False)
