"""The training stage: Ray Train starts the workers, restarts them and keeps their checkpoints."""

from __future__ import annotations

import logging
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift_ray.cluster import warn_if_too_large
from drift_ray.config import RunConfig, TrainingConfig
from drift_ray.progress import StageProgress
from drift_ray.store import CHECKPOINTS, RunStore
from drift_ray.training import SUMMARY_FILE
from drift_ray.training.failures import (
    died_out_of_turn,
    end_at_once,
    explain,
    release_workers,
    worker_places,
)
from drift_ray.training.metric_log import flush_interval_s, latest_metrics, log_name
from drift_ray.training.metrics import StepExporter
from drift_ray.training.parts import input_parts
from drift_ray.training.space import writing_to

if TYPE_CHECKING:
    import ray.train
    from torch import nn
    from torch.optim import Optimizer

    from drift_ray.training.checkpoint import CheckpointState
    from drift_ray.training.rounds import Rounds
    from drift_ray.training.waves import Overlap

logger = logging.getLogger(__name__)


def is_done(store: RunStore, *, digest: str) -> bool:
    """Whether the run's model folder is the finished result of the training with this digest."""
    return store.has_digest(SUMMARY_FILE, digest)


def run(
    config: RunConfig,
    store: RunStore,
    *,
    digest: str,
    beside: Overlap | Rounds | None = None,
) -> dict[str, Any]:
    """Train the policy on the weighed rollouts and commit it as the run's ``model/`` folder.

    Needs a connection to Ray. Goes on from the last checkpoint of the same digest, be it after a
    worker's death or in a new attempt at the stage. On the main thread, Ctrl-C ends the workers.

    Args:
        config: The run; a model folder by its absolute path, since Ray Train starts workers in a
            folder of its own.
        store: Its directory, which every worker must reach by the same URL.
        digest: Names this training: a function of everything that shapes its result.
        beside: The sampling and weighting that go on beside, once or in rounds; None: they are
            done.

    Returns:
        The summary committed as ``model/drift_ray.json``.

    Raises:
        StageError: Rollouts or weights are missing, nothing carries weight, or workers died more
            than ``training.max_failures`` times.
        DriftRayError: Data, model or storage are not in order.
        KeyboardInterrupt: Ctrl-C; the checkpoints stay.
    """
    if beside is None:
        input_parts(store, config.weighting.name)  # fails at once, not when the workers are up
    training = config.training
    warn_if_too_large("Training workers", training.num_workers.min, _resources(training))
    with progress(store, digest, beside_rollouts=beside is not None):
        _fit(partial(_trainer, config, store, digest, beside), training.max_failures)
    summary: dict[str, Any] = store.read_json(SUMMARY_FILE)
    return summary


def _trainer(
    config: RunConfig, store: RunStore, digest: str, beside: Overlap | Rounds | None
) -> ray.train.torch.TorchTrainer:
    import pyarrow.fs
    from ray.train import CheckpointConfig, FailureConfig, RunConfig
    from ray.train.torch import TorchTrainer

    training = config.training
    return TorchTrainer(
        _work,
        train_loop_config={
            "config": config,
            "url": store.url,
            "digest": digest,
            "beside": beside,
        },
        scaling_config=_scaling(training),
        run_config=RunConfig(
            name=digest,
            storage_path=store.path(CHECKPOINTS),
            storage_filesystem=(
                None
                if store.is_local
                else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(store.fs))
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=training.keep_checkpoints),
            failure_config=FailureConfig(max_failures=training.max_failures),
            callbacks=[end_at_once()],
        ),
    )


def _scaling(training: TrainingConfig) -> ray.train.ScalingConfig:
    from ray.train import ScalingConfig

    workers = training.num_workers
    return ScalingConfig(
        # Equal bounds would make Ray poll for resizes that cannot come.
        num_workers=(workers.min, workers.max) if workers.min < workers.max else workers.max,
        use_gpu=training.num_gpus > 0,
        resources_per_worker=_resources(training),
        label_selector=training.label_selector or None,
    )


def _work(job: dict[str, Any]) -> None:
    """Runs on every worker."""
    import ray.train
    import ray.train.torch

    from drift_ray.training.rounds import Rounds
    from drift_ray.training.rounds_worker import train_rounds
    from drift_ray.training.worker import Process, train_policy

    context = ray.train.get_context()
    process = Process(
        rank=context.get_world_rank(),
        local_rank=context.get_local_rank(),
        device=ray.train.torch.get_device(),
    )
    store = RunStore(job["url"])
    report = partial(_report, store.path(f"{CHECKPOINTS}/{job['digest']}"))

    with ExitStack() as stack:
        checkpoint = ray.train.get_checkpoint()
        with writing_to(tempfile.gettempdir()):  # where a remote one is downloaded to
            folder = stack.enter_context(checkpoint.as_directory()) if checkpoint else None
        exporter = stack.enter_context(StepExporter(str(store))) if process.rank == 0 else None
        beside = job["beside"]
        begin = (
            partial(train_rounds, rounds=beside)
            if isinstance(beside, Rounds)
            else partial(train_policy, overlap=beside)
        )
        begin(
            job["config"],
            store,
            digest=job["digest"],
            process=process,
            resume_from=Path(folder) if folder else None,
            on_checkpoint=report,
            on_step=exporter,
        )


def _report(place: str, state: CheckpointState, model: nn.Module, optimizer: Optimizer) -> None:
    """Every rank reports its shards; Ray Train makes one checkpoint of them."""
    import ray.train

    from drift_ray.training.checkpoint import save_checkpoint

    with tempfile.TemporaryDirectory(prefix="drift_ray-") as folder:
        save_checkpoint(Path(folder), state, model, optimizer)
        with writing_to(place):
            ray.train.report(
                {"step": state.step}, checkpoint=ray.train.Checkpoint.from_directory(folder)
            )


def _fit(trainer: Callable[[], ray.train.torch.TorchTrainer], max_failures: int) -> None:
    """Run to the end; what goes wrong is raised in the words of this package."""
    from ray.exceptions import RayActorError
    from ray.train import TrainingFailedError

    before = worker_places()
    for num_left in reversed(range(max_failures + 1)):
        try:
            return _fit_once(trainer())
        except (TrainingFailedError, RayActorError) as failure:
            if num_left == 0 or not died_out_of_turn(failure):
                raise explain(failure) from failure
            logger.warning("A process of Ray Train died while it set its workers up; once more.")
            release_workers(before)


def _fit_once(trainer: ray.train.torch.TorchTrainer) -> None:
    on_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if on_main_thread else None
    try:
        trainer.fit()
    except SystemExit:
        # Ray's own handler of Ctrl-C, set by fit(), ends the workers and then the process.
        raise KeyboardInterrupt from None
    finally:
        if on_main_thread:
            signal.signal(signal.SIGINT, handler)


def _resources(training: TrainingConfig) -> dict[str, float]:
    resources = {"CPU": training.num_cpus, **training.resources}
    if training.num_gpus > 0:
        resources["GPU"] = training.num_gpus
    return resources


@contextmanager
def progress(store: RunStore, digest: str, *, beside_rollouts: bool) -> Iterator[None]:
    """Show the newest metrics of a training until the block ends.

    Args:
        store: The run directory.
        digest: Names the training.
        beside_rollouts: See :func:`drift_ray.training.metric_log.log_name`.
    """
    log = log_name(digest, beside_rollouts=beside_rollouts)
    stop = threading.Event()
    follower = threading.Thread(target=_follow, args=(store, digest, log, stop), daemon=True)
    follower.start()
    try:
        yield
    finally:
        stop.set()
        follower.join()


def _follow(store: RunStore, digest: str, log: str, stop: threading.Event) -> None:
    with ExitStack() as stack:
        bar: StageProgress | None = None
        while not stop.wait(flush_interval_s(store)):
            try:
                latest = latest_metrics(store, digest, log)
            except OSError:
                return  # the workers say it if the run directory is gone
            if not latest:
                continue
            done = latest["step"] + 1
            if bar is None:  # steps of an earlier attempt say nothing about the pace of this one
                bar = stack.enter_context(
                    StageProgress("train", total=latest["num_steps"], unit="steps", done=done)
                )
            bar.update(done, f"loss {latest['loss']:.3f}")
