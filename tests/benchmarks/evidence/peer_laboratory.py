"""Runs the experiments of ``make evidence-trl``."""

from __future__ import annotations

import time

from drift_ray.lineage import claim_run
from drift_ray.pipeline import Pipeline
from drift_ray.store import MODEL
from tests.benchmarks.evidence import trl_peer
from tests.benchmarks.evidence.plan import Experiment
from tests.benchmarks.evidence.run import Laboratory, Record

COSTS = "trl_costs.json"


class PeerLaboratory(Laboratory):
    """Has TRL train; all else is as for the other methods."""

    def _run_rounds(self, experiment: Experiment) -> None:
        began = time.monotonic()
        run = Pipeline(self._config(experiment))
        claim_run(run.store, run.config, run.lineage)
        saved = {
            number: f"{run.inputs.rounds[number - 1].folder}/{MODEL}"
            for number in experiment.checkpoints
        } | {experiment.num_rounds: MODEL}
        if not run.store.exists(COSTS):
            for folder in saved.values():
                run.store.remove(folder)
            folders = {number: run.store.path(folder) for number, folder in saved.items()}
            costs = self._trainers.submit(
                trl_peer.train, run.config, list(run.inputs.prompts), folders
            )
            run.store.write_json(COSTS, costs.result())
        points = [self._point(experiment, number) for number in experiment.checkpoints]
        points.append(self._point(experiment, None))
        self._write(experiment, points, began)

    def _cost(self, experiment: Experiment, run: Pipeline, number: int | None) -> Record:
        costs = run.store.read_json(COSTS)[:number]
        return {name: sum(each[name] for each in costs) for name in costs[0]}
