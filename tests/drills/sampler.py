"""The driver that a drill kills: fills a run directory by replicas with a modelled engine.

Run as ``python -m tests.drills.sampler RUN ADDRESS SEED``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import ray

from drift_ray.config import (
    EnvironmentConfig,
    ModelConfig,
    ReplicaConfig,
    ReplicaRange,
    SamplingConfig,
)
from drift_ray.lineage import digest
from drift_ray.models import BUILTIN_NANO, model_fingerprint, resolve_model
from drift_ray.rollout.chat import ChatFormat
from drift_ray.rollout.episode import Episode, Rules
from drift_ray.rollout.player import play
from drift_ray.rollout.pool import ReplicaPool
from drift_ray.rollout.referee import Referee
from drift_ray.rollout.sampling import PartPlan, sample_missing
from drift_ray.rollout.work import Play, PolicyRef
from drift_ray.store import RunStore
from drift_ray.tasks import addition
from drift_ray.tasks.environment import UnaryFeedbackEnvironment
from drift_ray.tasks.graders import grade_reference
from drift_ray.types import Trajectory
from tests.modelled import make_modelled_engine, modelled

NUM_PROMPTS, GROUP_SIZE, PROMPTS_PER_PART = 160, 4, 8
NUM_REPLICAS = 4
RESOURCE = "rollout"
STEP_S = 0.02
"""With 32 requests a step, a run of one round takes about ten seconds of four replicas."""
SAMPLING = SamplingConfig(max_tokens=12)
ENVIRONMENT = EnvironmentConfig(think=False, system_prompt=None)
NEVER = 10**6


def plan(seed: int) -> PartPlan:
    return PartPlan(
        addition.prompts("train", NUM_PROMPTS, seed),
        folder="rollouts",
        digest=f"drill {seed}",
        prompts_per_part=PROMPTS_PER_PART,
        play=Play(
            group_size=GROUP_SIZE,
            policy=PolicyRef(digest=digest(model_fingerprint(resolve_model(BUILTIN_NANO)))),
            environment=ENVIRONMENT,
            grader="reference",
            sampling=SAMPLING,
            max_attempts=1,
            seed=seed,
        ),
    )


def undisturbed(seed: int) -> Iterator[Trajectory]:
    """What a run that nobody disturbs samples: played here, without Ray."""
    model = ModelConfig(path=BUILTIN_NANO)
    engine = make_modelled_engine(resolve_model(model.path), model, ReplicaConfig())
    rules = Rules(
        chat=ChatFormat(engine.tokenizer, "<answer>"),
        sampling=SAMPLING,
        max_model_len=engine.max_model_len,
        seed=seed,
    )
    episodes = [
        Episode(
            prompt,
            trajectory_index=index,
            make_environment=lambda prompt=prompt: UnaryFeedbackEnvironment(
                prompt, config=ENVIRONMENT, grade=grade_reference
            ),
            rules=rules,
        )
        for part in plan(seed)
        for prompt in part.prompts
        for index in range(GROUP_SIZE)
    ]
    for episode, failure in play(engine, episodes, Referee(num_threads=1, deadline_s=60.0)):
        assert failure is None
        yield episode.trajectory()


def main(run: str, address: str, seed: int) -> None:
    logging.basicConfig(level=logging.INFO)
    ray.init(address=address, log_to_driver=False)
    store = RunStore(run)
    config = ReplicaConfig(
        num_replicas=ReplicaRange(max=NUM_REPLICAS),
        num_cpus=0,
        resources={RESOURCE: 1},
        # A drill kills more than any real cluster does; it must end with all of the work done.
        max_restarts=NEVER,
        max_group_deaths=NEVER,
    )
    with ReplicaPool(store.url, ModelConfig(path=BUILTIN_NANO), config, modelled(STEP_S)) as pool:
        sample_missing(store, pool, plan(seed), stage="rollout", max_failed_frac=0.0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
