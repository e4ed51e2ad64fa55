"""All settings of a run, checked field by field before anything starts.

Every section is frozen and refuses unknown keys. Units stand in the names; bounds in the fields.
"""

from __future__ import annotations

from drift_ray.config.evaluation import BenchmarkConfig, EvaluationConfig, EvaluationSamplingConfig
from drift_ray.config.pipeline import PipelineConfig
from drift_ray.config.replicas import (
    EngineConfig,
    OpenAIConfig,
    ReplicaConfig,
    ReplicaRange,
    VllmConfig,
)
from drift_ray.config.rollout import RolloutConfig, SamplingConfig
from drift_ray.config.rounds import RoundsConfig
from drift_ray.config.run import ModelConfig, RunConfig
from drift_ray.config.section import FOLDER_NAME
from drift_ray.config.task import EnvironmentConfig, PromptsConfig, TaskConfig
from drift_ray.config.training import (
    EarlyStoppingConfig,
    LoraConfig,
    TrainingConfig,
    WorkerRange,
)
from drift_ray.config.weighting import BetaTarget, GateConfig, WeightingConfig

__all__ = [
    "FOLDER_NAME",
    "BenchmarkConfig",
    "BetaTarget",
    "EarlyStoppingConfig",
    "EngineConfig",
    "EnvironmentConfig",
    "EvaluationConfig",
    "EvaluationSamplingConfig",
    "GateConfig",
    "LoraConfig",
    "ModelConfig",
    "OpenAIConfig",
    "PipelineConfig",
    "PromptsConfig",
    "ReplicaConfig",
    "ReplicaRange",
    "RolloutConfig",
    "RoundsConfig",
    "RunConfig",
    "SamplingConfig",
    "TaskConfig",
    "TrainingConfig",
    "VllmConfig",
    "WeightingConfig",
    "WorkerRange",
]
