"""``python -m drift_ray.training``: the stage in one process, without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drift_ray.config_file import load_config
from drift_ray.errors import DriftRayError
from drift_ray.lineage import claim_run
from drift_ray.nano.tokenizer import build_tokenizer
from drift_ray.pipeline import Pipeline
from drift_ray.store import ROLLOUTS
from drift_ray.training import stage
from drift_ray.training.__main__ import main
from drift_ray.weighting.stage import summary_name
from tests.unit.training_cases import tiny_model, write_run
from tests.unit.weighting_cases import commit_weights


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A configuration, and its run directory up to the weights."""
    tiny_model().save_pretrained(tmp_path / "reference")
    build_tokenizer().save_pretrained(tmp_path / "reference")
    settings = {
        "run": str(tmp_path / "run"),
        "model": {"path": str(tmp_path / "reference")},
        "task": {
            "name": "addition",
            "train": {"source": "addition"},
            "test": {"source": "addition", "split": "test"},
        },
        "training": {"batch_size": 4, "checkpoint_every_steps": 4},
    }
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(settings))
    config = load_config(path)
    pipeline = Pipeline(config)
    claim_run(pipeline.store, config, pipeline.lineage)
    store = write_run(tmp_path / "run")  # 24 samples: 6 steps
    for part in store.parts(ROLLOUTS):
        commit_weights(store, part, config.weighting)
    summary = {"digest": pipeline.lineage.weights, "ess_frac": {"mean": 0.5}}
    store.write_json(summary_name(config.weighting), summary)
    return str(path)


def test_trains_once_and_goes_on_from_its_checkpoint(path: str, tmp_path: Path) -> None:
    run, digest = tmp_path / "run", Pipeline(load_config(path)).lineage.model
    other = run / "checkpoints" / "another-training" / "checkpoint_1"
    other.mkdir(parents=True)
    main(path)
    assert stage.is_done(Pipeline(load_config(path)).store, digest=digest)
    assert [p.name for p in (run / "checkpoints").iterdir()] == [digest]
    summary = json.loads((run / "model" / "drift_ray.json").read_text())
    assert (summary["num_steps"], summary["num_samples"]) == (6, 24)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {key: summary[key] for key in ("loss", "nll", "kl_ref")} == {
        key: last[key] for key in ("loss", "nll", "kl_ref")
    }

    model = run / "model" / "model.safetensors"
    trained, changed_at = model.read_bytes(), model.stat().st_mtime_ns
    main(path)
    assert model.stat().st_mtime_ns == changed_at

    # Killed between its last checkpoint and its commit.
    (run / "model" / "drift_ray.json").unlink()
    (run / "metrics.jsonl").unlink()
    main(path)
    assert model.read_bytes() == trained
    summary = json.loads((run / "model" / "drift_ray.json").read_text())
    assert (summary["num_steps"], summary["loss"]) == (6, None)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("weighting.beta=0.7", "drift-ray weigh"),
        ("weighting.gate.min_ess_frac=0.6", "is 0.5, but weighting.gate.min_ess_frac is 0.6"),
        ("run=memory://run", "not on a disk"),
        ("seed=7", "sampled with other settings"),
    ],
)
def test_refuses_what_the_other_command_refuses(path: str, override: str, complaint: str) -> None:
    with pytest.raises(DriftRayError, match=complaint):
        main(path, override)
