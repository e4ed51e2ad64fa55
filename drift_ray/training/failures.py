"""What to do about a failure of Ray Train: go on, or end at once with the cause in our words."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Any

from drift_ray.errors import DriftRayError, StageError, StorageError
from drift_ray.training.space import lacks_space

if TYPE_CHECKING:
    from ray.train import UserCallback


def end_at_once() -> UserCallback:
    """What Ray's controller calls when a worker fails, before it restarts them all."""
    from ray.train import ControllerError, UserCallback

    class EndAtOnce(UserCallback):
        def after_exception(
            self, run_context: Any, worker_exceptions: dict[int, Exception]
        ) -> None:
            for error in worker_exceptions.values():
                if isinstance(error, DriftRayError) and not _may_pass(error):
                    raise ControllerError(error)  # which Ray does not retry

    return EndAtOnce()


def _may_pass(error: DriftRayError) -> bool:
    """Whether a restart can help: the network may be back then, but a full disk stays full."""
    return isinstance(error, StorageError) and not lacks_space(error)


def died_out_of_turn(failure: Exception) -> bool:
    """Whether a worker died while Ray Train did not watch it, or the process that watches.

    It restarts workers that die at work or before they are ready, but takes the death of one in
    between, while the group is set up, for a defect of its own.
    """
    from ray.exceptions import RayActorError

    return isinstance(getattr(failure, "controller_failure", failure), RayActorError)


def worker_places() -> set[str]:
    """Ids of this job's placement groups without a name, as Ray Train's are and replicas' not."""
    import ray
    from ray.util.placement_group import placement_group_table

    job_id = ray.get_runtime_context().get_job_id()
    return {
        group_id
        for group_id, group in placement_group_table().items()
        if group_id.endswith(job_id) and not group["name"] and group["state"] != "REMOVED"
    }


def release_workers(before: Set[str]) -> None:
    """End the workers that Ray Train left behind, and free their places.

    It forgets the placement group of workers that it could not set up, and the next attempt would
    wait for its room until the job ends.

    Args:
        before: The places that were there before Ray Train began, which are somebody else's.
    """
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    for group_id in worker_places() - before:
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group_id))))


def explain(failure: Exception) -> DriftRayError:
    """The error of this package among a failure's causes, else a StageError that names one."""
    workers: dict[int, Exception] = getattr(failure, "worker_failures", {})
    controller: Exception = getattr(failure, "controller_failure", failure)
    for error in (*workers.values(), controller):
        if isinstance(error, DriftRayError):
            return error
    if workers:
        # When a worker fails, the others lose their connection to it: its own error is the cause.
        rank, error = next(
            ((r, e) for r, e in workers.items() if "by peer" not in str(e)),
            next(iter(workers.items())),
        )
        where = f"worker {rank}"
    elif died_out_of_turn(failure):
        where, error = "a worker or the controller", controller
    else:
        return StageError(f"Ray Train failed: {controller}")
    return StageError(
        f"Training failed on {where}: {_reason(error)}",
        "Run the same command again to go on from the last checkpoint. If a worker ran out of "
        "memory, lower training.micro_batch_tokens.",
    )


def _reason(error: Exception) -> str:
    from ray.exceptions import RayActorError

    error = getattr(error, "health_check_failure", error)
    if isinstance(error, RayActorError):
        return "its process died (it was killed, ran out of memory, or its node is gone)."
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}"
