"""Runs experiments: the real stages, one resident pool of replicas, two processes that train.

Everything is found again: prompts, samples, models and evaluations by the run directory, an
experiment by its ``experiment.json``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from drift_ray import rounds as in_rounds
from drift_ray.cluster import ray_cluster
from drift_ray.config import RunConfig
from drift_ray.config_file import load_config
from drift_ray.evaluation import stage as evaluation
from drift_ray.evaluation.results import evaluation_folder
from drift_ray.lineage import claim_run
from drift_ray.models import resolve_model
from drift_ray.pipeline import Pipeline
from drift_ray.progress import console
from drift_ray.rollout import stage as rollout
from drift_ray.rollout.pool import ReplicaPool
from drift_ray.rollout.work import PolicyRef
from drift_ray.schema import TRAJECTORY_SCHEMA
from drift_ray.store import MODEL, ROLLOUTS, RunStore
from drift_ray.training.metric_log import read_metrics
from tests.benchmarks.evidence import trainer
from tests.benchmarks.evidence.plan import DEMO, Experiment, Scale, Task
from tests.benchmarks.evidence.tasks import make_model, prompt_file, write_prompts

RECORD = "experiment.json"
_NUM_TRAINERS = 2
_GREEDY, _SAMPLED = "greedy", "sampled"
Record = dict[str, Any]


class LocalTraining:
    """A training in rounds that goes on in another process, as :mod:`drift_ray.rounds` knows it."""

    def __init__(self, future: Future[None]) -> None:
        self._future = future

    def raise_if_failed(self, *, wait_s: float = 0.0) -> None:
        """Raise what the training ended with, if it has ended badly."""
        if wait([self._future], timeout=wait_s).done:
            self._future.result()

    def result(self) -> dict[str, Any]:
        """Wait for the end."""
        self._future.result()
        return {}


class Laboratory:
    """A task with everything its experiments share."""

    def __init__(
        self, out: Path, task: Task, scale: Scale, pool: ReplicaPool, trainers: ProcessPoolExecutor
    ) -> None:
        self._task, self._scale, self._pool, self._trainers = task, scale, pool, trainers
        self._folder = out / task.name

    def run(self, experiments: Sequence[Experiment]) -> list[Record]:
        """The records of experiments; those that are not there yet are made."""
        due = [each for each in experiments if not self._record_file(each).exists()]
        at_once = [each for each in due if each.num_rounds == 1]
        began = {each: time.monotonic() for each in at_once}
        for each in at_once:
            self._sample(each)
        trained = [self._trainers.submit(trainer.train_once, self._config(e)) for e in at_once]
        for each, future in zip(at_once, trained, strict=True):
            future.result()
            self._write(each, [self._point(each, None)], began[each])
        for each in due:
            if each.num_rounds == 0:
                self._write(each, [self._point(each, None)], time.monotonic())
            elif each.num_rounds > 1:
                self._run_rounds(each)
        return [json.loads(self._record_file(each).read_text()) for each in experiments]

    def _run_rounds(self, experiment: Experiment) -> None:
        began = time.monotonic()
        run = Pipeline(self._config(experiment))
        config, rounds = run.config, run.inputs.rounds
        claim_run(run.store, config, run.lineage)
        future = self._trainers.submit(
            trainer.train_in_rounds,
            config,
            run.lineage.model,
            in_rounds.what_to_train(config, rounds),
        )
        pool = self._pool.within(experiment.folder)
        in_rounds.run(run.store, pool, LocalTraining(future), config, run.inputs.prompts, rounds)
        points = [self._point(experiment, number) for number in experiment.checkpoints]
        points.append(self._point(experiment, None))
        for each in rounds:
            run.store.remove(f"{each.folder}/{MODEL}")
        self._write(experiment, points, began)

    def _sample(self, experiment: Experiment) -> None:
        """Have the trajectories there; experiments that ask for the same share them."""
        config = self._config(experiment)
        run = Pipeline(config)
        folder = f"samples/{run.lineage.rollouts}"
        shared = RunStore(str(self._folder / folder))
        own = config.model_copy(update={"run": shared.url})
        parts = rollout.plan(own, run.lineage, run.inputs.prompts)
        claim_run(shared, own, run.lineage)
        if not parts.is_done(shared):
            rollout.run(shared, self._pool.within(folder), own, parts)
        target = self._folder / experiment.folder / ROLLOUTS
        target.mkdir(parents=True, exist_ok=True)
        claim_run(run.store, config, run.lineage)
        for name in shared.parts(ROLLOUTS):
            file = Path(shared.path(name))
            if not (target / file.name).exists():
                os.link(file, target / file.name)

    def _point(self, experiment: Experiment, number: int | None) -> Record:
        """What a policy is and has cost: that of a round, or the last one."""
        run = Pipeline(self._config(experiment))
        if experiment.num_rounds == 0:
            policy = PolicyRef(digest=run.lineage.reference)
        elif number is None:
            policy = PolicyRef(digest=run.lineage.model, folder=MODEL)
        else:
            each = run.inputs.rounds[number - 1]
            policy = PolicyRef(digest=each.lineage.model, folder=f"{each.folder}/{MODEL}")
        tag = "last" if number is None else f"round-{number:03d}"
        point: Record = {"round": number, "cost": self._cost(experiment, run, number)}
        for mode in (_GREEDY, _SAMPLED):
            point[mode] = self._evaluate(experiment, mode, f"{tag}-{mode}", policy)
        point["kl"] = self._trainers.submit(
            trainer.divergence,
            run.store.url,
            evaluation_folder(f"{tag}-{_SAMPLED}"),
            str(resolve_model(run.config.model.path)),
        ).result()
        return point

    def _evaluate(self, experiment: Experiment, mode: str, name: str, policy: PolicyRef) -> Record:
        run = Pipeline(self._config(experiment, sampled=mode == _SAMPLED))
        (benchmark,) = run.inputs.benchmarks.values()
        metrics = evaluation.run(
            run.store,
            self._pool.within(experiment.folder),
            run.config,
            run.lineage,
            benchmark,
            name=name,
            policy=policy,
        )
        turns: dict[str, list[int]] = {}
        for part in run.store.parts(evaluation_folder(name)):
            columns = ["prompt_id", "first_success_turn"]
            for row in run.store.read_table(part, TRAJECTORY_SCHEMA, columns).to_pylist():
                turns.setdefault(row["prompt_id"], []).append(row["first_success_turn"] or 0)
        repeated = {key: metrics["repeated_answers"][key] for key in ("num", "num_turns")}
        return {"first_success_turn": turns, "repeated_answers": repeated}

    def _cost(self, experiment: Experiment, run: Pipeline, number: int | None) -> Record:
        lines = read_metrics(run.store)
        if experiment.num_rounds > 1:
            rounds = [line for line in lines if line.get("stage") == in_rounds.STAGE]
            told = [line for line in rounds if number is None or line["round"] <= number]
            return {
                "num_trajectories": sum(line["num_trajectories"] for line in told),
                "num_sampled_tokens": sum(line["num_sampled_tokens"] for line in told),
                "sampling_cpu_s": sum(line["sampling_cpu_s"] for line in told),
                "sampling_s": sum(line["sampling_s"] for line in told),
                "training_cpu_s": sum(line["training"]["cpu_s"] for line in told),
                "training_s": sum(line["training_s"] for line in told),
            }
        steps = [line for line in lines if line.get("stage") == "training"]
        ends: list[Record] = []
        if experiment.num_rounds:
            shared = RunStore(str(self._folder / "samples" / run.lineage.rollouts))
            ends = [line for line in read_metrics(shared) if line.get("event") == "end"]
        return {
            "num_trajectories": sum(line["num_trajectories"] for line in ends),
            "num_sampled_tokens": sum(line["num_sampled_tokens"] for line in ends),
            "sampling_cpu_s": sum(line["cpu_s"] for line in ends),
            "sampling_s": sum(line["duration_s"] for line in ends),
            "training_cpu_s": sum(line["cpu_s"] for line in steps),
            "training_s": sum(line["step_s"] for line in steps),
        }

    def _config(self, experiment: Experiment, *, sampled: bool = False) -> RunConfig:
        folder = self._folder
        settings: dict[str, Any] = {
            "run": str((folder / experiment.folder).resolve()),
            "seed": experiment.seed,
            "model.path": make_model(self._task, folder, self._scale),
            "task.name": self._task.name,
            "task.grader": self._task.grader,
            "task.train": _prompts(folder, experiment.train),
            "task.test": _prompts(folder, experiment.prompts),
            "training.num_workers": 1,
            # Replicas rest while a round is trained on; two offline trainings go on at once.
            "training.num_cpus": _NUM_TRAINERS if experiment.num_rounds > 1 else 1,
            "rounds.keep_policies": max(1, experiment.num_rounds),
            **experiment.settings,
        }
        if sampled:
            settings["evaluation.num_samples"] = self._scale.num_samples
            settings["evaluation.sampling.temperature"] = 1.0
        overrides = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
        return load_config(experiment.config, overrides)

    def _record_file(self, experiment: Experiment) -> Path:
        return self._folder / experiment.folder / RECORD

    def _write(self, experiment: Experiment, points: list[Record], began: float) -> None:
        record = {
            "task": experiment.task,
            "phase": experiment.phase,
            "method": experiment.method,
            "variant": experiment.variant,
            "seed": experiment.seed,
            "settings": dict(experiment.settings),
            "wall_s": time.monotonic() - began,
            "points": points,
        }
        RunStore(str(self._folder / experiment.folder)).write_json(RECORD, record)
        console.print(f"[green]✓[/green] {experiment.task} {experiment.folder}")


@contextmanager
def laboratory(
    out: Path, task: Task, scale: Scale, kind: type[Laboratory] = Laboratory
) -> Iterator[Laboratory]:
    """Have replicas and trainers of a task up while this block runs."""
    folder = out / task.name
    write_prompts(task, folder, scale)
    model = make_model(task, folder, scale)
    demo = load_config(DEMO, [f"model.path={model}", f"run={folder}"])
    with (
        ProcessPoolExecutor(
            _NUM_TRAINERS, mp_context=get_context("spawn"), initializer=trainer.be_quiet
        ) as trainers,
        ray_cluster(demo),
        ReplicaPool(str(folder.resolve()), demo.model, demo.replicas) as pool,
    ):
        yield kind(out, task, scale, pool, trainers)


def _prompts(folder: Path, kind: str) -> dict[str, str]:
    path = str(prompt_file(folder, kind).resolve())
    return {"source": "jsonl", "path": path, "id_field": "id"}
