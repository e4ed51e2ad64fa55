"""What both models are measured on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from drift_ray.config.rollout import SamplingConfig
from drift_ray.config.section import NonNegativeFloat, PositiveInt, Section
from drift_ray.config.task import PromptsConfig
from drift_ray.grader_config import GraderChoice


class EvaluationSamplingConfig(SamplingConfig):
    """Greedy unless told otherwise."""

    temperature: NonNegativeFloat = 0.0
    max_tokens: PositiveInt = 1024


class BenchmarkConfig(Section):
    """Further held-out prompts that both models are evaluated on."""

    prompts: PromptsConfig
    """May share no question with ``task.train``."""
    grader: GraderChoice | None = None
    """Who judges; as ``task.grader`` when omitted."""


BenchmarkName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class EvaluationConfig(Section):
    """Success within k turns on held-out prompts."""

    num_samples: PositiveInt = 1
    """Trajectories a prompt; more than one need a temperature."""
    prompts_per_part: PositiveInt = 128
    """Prompts in one Parquet part."""
    sampling: EvaluationSamplingConfig = EvaluationSamplingConfig()
    benchmarks: dict[BenchmarkName, BenchmarkConfig] = Field(default_factory=dict)
    """Beside ``task.test``, by name: each has its folder below ``evaluation/<model>``."""

    @model_validator(mode="after")
    def _samples_differ(self) -> EvaluationConfig:
        if self.num_samples > 1 and self.sampling.temperature == 0.0:
            raise ValueError(
                f"num_samples {self.num_samples} at temperature 0 is one trajectory "
                f"{self.num_samples} times: set sampling.temperature"
            )
        return self

    @model_validator(mode="after")
    def _folders_are_free(self) -> EvaluationConfig:
        if "failures" in self.benchmarks:
            raise ValueError("a benchmark cannot be named failures: that folder is taken")
        return self
