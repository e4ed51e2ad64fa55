"""The pipeline on one GPU: the replica and the training worker share it."""

from __future__ import annotations

import json
from pathlib import Path

from drift_ray.config_file import load_config
from drift_ray.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[2]


def test_rollouts_and_training_take_turns_on_one_gpu(tmp_path: Path) -> None:
    config = load_config(
        ROOT / "jobs/configs/demo.yaml",
        [
            f"run={tmp_path / 'run'}",
            "task.train.num_prompts=32",
            "task.test.num_prompts=32",
            "replicas={num_replicas: 1, num_gpus: 1, "
            "engine: {max_model_len: 512, gpu_memory_utilization: 0.3}}",
            "training={num_workers: 1, num_gpus: 1, dtype: bfloat16}",
        ],
    )
    Pipeline(config).run()
    for model in ("reference", "trained"):
        metrics = json.loads((tmp_path / f"run/evaluation/{model}/metrics.json").read_text())
        assert metrics["num_prompts"] == 32
        assert metrics["format_failures"]["rate"] < 0.5
