"""Where step metrics go besides ``metrics.jsonl``: TensorBoard, Weights & Biases, MLflow.

Each library is imported when it is asked for. A resumed training goes on in the same place.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from drift_ray.config import RunConfig
from drift_ray.errors import StageError
from drift_ray.lineage import redact
from drift_ray.store import RunStore

TENSORBOARD = "tensorboard"
"""Folder of the run directory."""
PROJECT = "drift_ray"
"""Project of Weights & Biases, experiment of MLflow."""
_DIGEST_TAG = "drift_ray.digest"


class Tracker(Protocol):
    """Takes the metrics of a training, from its first worker alone."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Note scalars of a step; must not wait for a network."""

    def flush(self) -> None:
        """Put what was noted where it can be seen."""

    def close(self, failed: bool) -> None:
        """End; nothing is noted afterwards."""


class Trackers:
    """All trackers of a training as one. Use as a context manager.

    Args:
        config: The run; its secrets are not passed on.
        store: Its directory.
        digest: Names the training.
    """

    def __init__(self, config: RunConfig, store: RunStore, digest: str) -> None:
        self._config = config
        self._store = store
        self._digest = digest
        self._open: Sequence[Tracker] | None = None

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self,
        error: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for tracker in self._open or ():
            tracker.close(failed=error is not None)

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Note the numbers among a step's metrics."""
        step = metrics["step"]
        if self._open is None:  # only now is it known where a resumed training goes on
            self._open = [self._start(name, step) for name in self._config.training.trackers]
        scalars = {
            f"training/{name}": float(value)
            for name, value in metrics.items()
            if isinstance(value, int | float) and name not in ("step", "num_steps")
        }
        for tracker in self._open:
            tracker.log(scalars, step)

    def flush(self) -> None:
        """Put what was noted where it can be seen; may take a while."""
        for tracker in self._open or ():
            tracker.flush()

    def _start(self, name: str, first_step: int) -> Tracker:
        if name == TENSORBOARD:
            return TensorBoardTracker(self._store, self._digest, first_step)
        settings = redact(self._config.model_dump(mode="json", exclude={"run"}))
        kind = WandbTracker if name == "wandb" else MlflowTracker
        try:
            return kind(settings, self._config.task.name, self._digest)
        except Exception as error:  # whatever their services and settings may come up with
            raise StageError(
                f"training.trackers: {name} does not start: {error}",
                "Log in where the training runs, or leave it out.",
            ) from error


class TensorBoardTracker:
    """Event files in ``tensorboard/DIGEST``; for a remote run directory, uploaded at every flush.

    Args:
        store: The run directory.
        digest: Names the training.
        first_step: TensorBoard hides what an earlier attempt wrote from here on.
    """

    def __init__(self, store: RunStore, digest: str, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._store = store
        self._name = f"{TENSORBOARD}/{digest}"
        self._temporary = None if store.is_local else tempfile.TemporaryDirectory()
        self._folder = self._temporary.name if self._temporary else store.path(self._name)
        self._writer = SummaryWriter(self._folder, purge_step=first_step, flush_secs=10)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """See :class:`Tracker`."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """See :class:`Tracker`."""
        self._writer.flush()
        if self._temporary:
            for file in Path(self._folder).iterdir():
                self._store.write_bytes(f"{self._name}/{file.name}", file.read_bytes())

    def close(self, failed: bool) -> None:
        """See :class:`Tracker`."""
        self.flush()
        self._writer.close()
        if self._temporary:
            self._temporary.cleanup()


class WandbTracker:
    """A run of Weights & Biases, whose id is the training's digest; login and mode are its own.

    Args:
        settings: Of the run, without secrets.
        name: To show.
        digest: Names the training.
    """

    def __init__(self, settings: dict[str, Any], name: str, digest: str) -> None:
        import wandb

        self._run = wandb.init(
            project=PROJECT, id=digest, name=name, config=settings, resume="allow"
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """See :class:`Tracker`; it ignores steps that a resumed training repeats."""
        self._run.log(dict(metrics), step=step)

    def flush(self) -> None:
        """Nothing to do: a process of its own sends what was logged."""

    def close(self, failed: bool) -> None:
        """See :class:`Tracker`."""
        self._run.finish(exit_code=int(failed))


class MlflowTracker:
    """A run of MLflow, found again by the training's digest; its tracking URI is MLflow's own.

    Args:
        settings: Of the run, without secrets.
        name: To show.
        digest: Names the training.
    """

    def __init__(self, settings: dict[str, Any], name: str, digest: str) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment(PROJECT)
        earlier = mlflow.search_runs(
            experiment_names=[PROJECT],
            filter_string=f"tags.`{_DIGEST_TAG}` = '{digest}'",
            max_results=1,
            output_format="list",
        )
        if earlier:
            mlflow.start_run(run_id=earlier[0].info.run_id)
        else:
            mlflow.start_run(run_name=name, tags={_DIGEST_TAG: digest})
            mlflow.log_dict(settings, "config.json")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """See :class:`Tracker`."""
        self._mlflow.log_metrics(dict(metrics), step=step, synchronous=False)

    def flush(self) -> None:
        """See :class:`Tracker`."""
        self._mlflow.flush_async_logging()

    def close(self, failed: bool) -> None:
        """See :class:`Tracker`."""
        self.flush()
        self._mlflow.end_run(status="FAILED" if failed else "FINISHED")
