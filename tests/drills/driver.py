"""The driver that a drill kills: rollouts by replicas with a modelled engine, weights, training.

Run as ``python -m tests.drills.driver RUN SEED STAGE…`` with ``RAY_ADDRESS`` set. All is done as
``drift-ray run`` does it, but for the engine.
"""

from __future__ import annotations

import logging
import sys

from drift_ray.cluster import ray_cluster
from drift_ray.config import (
    ModelConfig,
    PromptsConfig,
    ReplicaConfig,
    ReplicaRange,
    RolloutConfig,
    RunConfig,
    TaskConfig,
    TrainingConfig,
    WorkerRange,
)
from drift_ray.lineage import claim_run
from drift_ray.models import BUILTIN_NANO
from drift_ray.pipeline import Pipeline
from drift_ray.rollout.pool import ReplicaPool
from drift_ray.steps import Hands, Stage, steps_of
from tests.drills.sampler import (
    ENVIRONMENT,
    GROUP_SIZE,
    NUM_PROMPTS,
    PROMPTS_PER_PART,
    SAMPLING,
)
from tests.modelled import modelled

NUM_REPLICAS, REPLICA = 4, "rollout"
NUM_TRAINERS, TRAINER = 2, "trainer"
"""How many there are, and the resource of a node that each takes one of."""
STEP_S = 0.02
"""With 32 requests a step, the rollouts take about ten seconds of four replicas."""
NEVER = 10**6


def run_config(run: str, seed: int) -> RunConfig:
    return RunConfig(
        run=run,
        seed=seed,
        model=ModelConfig(path=BUILTIN_NANO),
        task=TaskConfig(
            name="addition",
            train=PromptsConfig(source="addition", split="train", num_prompts=NUM_PROMPTS),
            test=PromptsConfig(source="addition", split="test", num_prompts=1),
            environment=ENVIRONMENT,
        ),
        # A drill kills more than any real cluster does; it must end with all of the work done.
        replicas=ReplicaConfig(
            num_replicas=ReplicaRange(max=NUM_REPLICAS),
            num_cpus=0,
            resources={REPLICA: 1},
            max_restarts=NEVER,
            max_group_deaths=NEVER,
        ),
        rollout=RolloutConfig(
            group_size=GROUP_SIZE,
            prompts_per_part=PROMPTS_PER_PART,
            sampling=SAMPLING,
            max_attempts=1,
            max_failed_frac=0.0,
        ),
        training=TrainingConfig(
            num_workers=WorkerRange(min=NUM_TRAINERS, max=NUM_TRAINERS),
            resources={TRAINER: 1},
            num_epochs=2,
            batch_size=32,
            micro_batch_tokens=1024,
            learning_rate=1e-3,
            checkpoint_every_steps=5,
            max_failures=NEVER,
        ),
    )


def main(run: str, seed: int, stages: set[str]) -> None:
    logging.basicConfig(level=logging.INFO)
    pipeline = Pipeline(run_config(run, seed))
    config, store = pipeline.config, pipeline.store
    claim_run(store, config, pipeline.lineage)
    steps = [step for step in steps_of(pipeline.inputs) if step.stage in stages]
    with (
        ray_cluster(config),
        ReplicaPool(store.url, config.model, config.replicas, modelled(STEP_S)) as pool,
    ):
        for step in steps:
            if not step.is_done():
                print(f"{step.name}: {step.run(Hands(pool=pool))}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), {Stage(each) for each in sys.argv[3:]})
