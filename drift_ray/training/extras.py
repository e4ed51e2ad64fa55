"""Libraries that some settings of the training need, and which not everybody installs."""

from __future__ import annotations

from importlib.util import find_spec

from drift_ray.config import TrainingConfig
from drift_ray.errors import ConfigError

_INSTALL = {
    "peft": "pip install 'drift-ray[lora]'",
    "tensorboard": "pip install 'drift-ray[tensorboard]'",
    "wandb": "pip install wandb",
    "mlflow": "pip install mlflow",
}


def check_installed(config: TrainingConfig) -> None:
    """Find what is missing before anything starts; imports nothing.

    Raises:
        ConfigError: A setting asks for a library that is not installed.
    """
    wanted: list[tuple[str, str]] = [("training.trackers", name) for name in config.trackers]
    if config.lora is not None:
        wanted.append(("training.lora", "peft"))
    for setting, library in wanted:
        if find_spec(library) is None:
            raise ConfigError(
                f"{setting} needs {library}, which is not installed.",
                f"Install it where training runs ({_INSTALL[library]}), or change the setting.",
            )
