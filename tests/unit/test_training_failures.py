"""What ends a training, what is tried again, and the words for it; Ray is not started."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, WorkerGroupError

from drift_ray.errors import DataError, DriftRayError, StageError, StorageError
from drift_ray.training import failures


def test_an_error_of_ours_stays_itself() -> None:
    ours = StorageError("No space left.", "Free some.")
    peer = RuntimeError("Connection closed by peer [127.0.0.1]:1")
    assert failures.explain(WorkerGroupError("…", {0: peer, 1: ours})) is ours
    assert failures.explain(ControllerError(ours)) is ours


@pytest.mark.parametrize(
    "error", [StorageError("No space left to write x."), DataError("Row 3."), StageError("NaN.")]
)
def test_what_a_restart_cannot_mend_ends_the_training(error: DriftRayError) -> None:
    peer = RuntimeError("Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(ControllerError) as raised:
        failures.end_at_once().after_exception(None, {0: peer, 1: error})
    assert raised.value.controller_failure is error


@pytest.mark.parametrize("error", [StorageError("The network is gone."), MemoryError()])
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    failures.end_at_once().after_exception(None, {1: error})


def test_the_cause_is_told_from_its_consequences() -> None:
    peer = RuntimeError("Connection closed by peer [127.0.0.1]:1")
    error = failures.explain(WorkerGroupError("…", {0: peer, 1: MemoryError("too much")}))
    assert isinstance(error, StageError)
    assert "worker 1: MemoryError: too much" in error.message
    assert "micro_batch_tokens" in error.hint


@pytest.mark.parametrize(
    ("failure", "worker"),
    [
        (WorkerGroupError("…", {1: ActorDiedError()}), "worker 1"),
        (ControllerError(ActorDiedError()), "a worker or the controller"),
        (ActorDiedError(), "a worker or the controller"),
    ],
)
def test_a_dead_process_is_one_line(failure: Exception, worker: str) -> None:
    error = failures.explain(failure)
    assert f"{worker}: its process died" in error.message
    assert "\n" not in error.message
