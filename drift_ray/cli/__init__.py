"""The ``drift-ray`` command. Heavy imports happen inside the commands, so help is instant.

``app`` puts the commands together and turns errors into exit codes; ``commands`` says what all of
them have in common; ``stages`` does work, ``amend`` goes on with a run that is there, ``look`` only
reads, ``health`` finds out what would stop a run, and ``example`` prints configurations.
"""

from drift_ray.cli.app import cli, main

__all__ = ["cli", "main"]
