"""A whole run: one section for every room, and what must hold between them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from drift_ray.config.evaluation import EvaluationConfig
from drift_ray.config.pipeline import PipelineConfig
from drift_ray.config.replicas import ReplicaConfig, VllmConfig
from drift_ray.config.rollout import RolloutConfig
from drift_ray.config.rounds import RoundsConfig
from drift_ray.config.section import Section
from drift_ray.config.task import TaskConfig
from drift_ray.config.training import TrainingConfig
from drift_ray.config.weighting import BetaTarget, GateConfig, WeightingConfig


class ModelConfig(Section):
    """The frozen reference policy π_ref, which is also where training starts."""

    path: str = Field(min_length=1)
    """A Hugging Face folder, a hub id, or ``builtin:nano``."""
    trust_remote_code: bool = False
    """Run Python code that the model folder brings along."""
    history: Literal["append", "template"] = "append"
    """How a turn's prompt is made. ``append``: the tokens so far, as they were sampled, then the
    feedback. ``template``: all messages rendered anew, as a deployed chat would."""


class RunConfig(Section):
    """Everything one run needs."""

    run: str = Field(min_length=1)
    """URL of the run directory: a path, or anything fsspec knows (s3://, gs://, …)."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of prompts, samples and the order of training."""
    model: ModelConfig
    task: TaskConfig
    replicas: ReplicaConfig = ReplicaConfig()
    rollout: RolloutConfig = RolloutConfig()
    weighting: WeightingConfig = WeightingConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    pipeline: PipelineConfig = PipelineConfig()
    rounds: RoundsConfig = RoundsConfig()

    @model_validator(mode="after")
    def _history_fits_the_loss(self) -> RunConfig:
        if self.model.history == "template" and self.training.loss_turns == "all":
            # A rendered history differs from turn to turn: no one sequence holds all turns.
            raise ValueError("training.loss_turns 'all' needs model.history 'append'")
        return self

    @model_validator(mode="after")
    def _parts_are_weighed_alone(self) -> RunConfig:
        """Where training begins before all trajectories are there, nothing may need them all."""
        beta, weighting, training = self.weighting.beta, self.weighting, self.training
        whole = {
            "weighting.beta": isinstance(beta, BetaTarget) and beta.per == "run",
            "weighting.gate": weighting.gate != GateConfig(),
            "weighting.verdicts": weighting.verdicts is not None,
            "training.early_stopping": training.early_stopping is not None,
        }
        in_rounds = {
            "pipeline.overlap": self.pipeline.overlap,
            "training.held_out_frac": training.held_out_frac > 0,
            "replicas.engine": not isinstance(self.replicas.engine, VllmConfig),
        }
        found = [name for name, depends in whole.items() if depends]
        if self.pipeline.overlap and found:
            raise ValueError(
                f"pipeline.overlap trains before all trajectories are there, but "
                f"{' and '.join(found)} needs them all: leave it out (beta may be a number or per: "
                "group), or set pipeline.overlap to false"
            )
        found += [name for name, is_set in in_rounds.items() if is_set]
        if self.rounds.num_rounds > 1 and found:
            raise ValueError(
                f"rounds.num_rounds {self.rounds.num_rounds} does not go together with "
                f"{' and '.join(found)}: leave it out (beta may be a number or per: group, the "
                "engine has to be vllm), or set rounds.num_rounds to 1"
            )
        return self

    @model_validator(mode="after")
    def _benchmarks_have_names_of_their_own(self) -> RunConfig:
        if self.task.name in self.evaluation.benchmarks:
            raise ValueError(
                f"evaluation.benchmarks.{self.task.name} has the name of the task: choose another"
            )
        return self

    def benchmark_grader(self, name: str) -> str:
        """The grader of one of ``evaluation.benchmarks``."""
        return self.evaluation.benchmarks[name].grader or self.task.grader
