"""What a drill samples, and what it would sample if nobody disturbed it."""

from __future__ import annotations

from collections.abc import Iterator

from drift_ray.config import (
    EnvironmentConfig,
    ModelConfig,
    ReplicaConfig,
    SamplingConfig,
)
from drift_ray.lineage import digest
from drift_ray.models import BUILTIN_NANO, model_fingerprint, resolve_model
from drift_ray.rollout.chat import ChatFormat
from drift_ray.rollout.episode import Episode, Rules
from drift_ray.rollout.player import play
from drift_ray.rollout.referee import Referee
from drift_ray.rollout.sampling import PartPlan
from drift_ray.rollout.work import Play, PolicyRef
from drift_ray.tasks import addition
from drift_ray.tasks.environment import UnaryFeedbackEnvironment
from drift_ray.tasks.graders import grade_reference
from drift_ray.types import Trajectory
from tests.modelled import make_modelled_engine

NUM_PROMPTS, GROUP_SIZE, PROMPTS_PER_PART = 160, 4, 8
SAMPLING = SamplingConfig(max_tokens=12)
ENVIRONMENT = EnvironmentConfig(think=False, system_prompt=None)


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
