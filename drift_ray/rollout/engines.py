"""The engine that a configuration asks for."""

from __future__ import annotations

from pathlib import Path

from drift_ray.config import ModelConfig, ReplicaConfig, VllmConfig
from drift_ray.rollout.protocol import Engine


def make_engine(folder: Path, model: ModelConfig, replica: ReplicaConfig) -> Engine:
    """Load a policy into the configured engine.

    Args:
        folder: Hugging Face folder of the policy.
        model: How the folder may be loaded.
        replica: Devices of the engine, its kind and arguments.

    Raises:
        ModelError: The engine is not installed, or refuses the model or an argument.
    """
    if isinstance(replica.engine, VllmConfig):
        from drift_ray.rollout.vllm_engine import VllmEngine

        return VllmEngine(
            folder,
            on_gpu=replica.num_gpus > 0,
            arguments=replica.engine.arguments,
            trust_remote_code=model.trust_remote_code,
        )
    from transformers import AutoTokenizer

    from drift_ray.rollout.openai_engine import OpenAIEngine

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    return OpenAIEngine(replica.engine, tokenizer)
