"""Rescored trajectories, weighed by real Ray Data and read by the training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from drift_ray.errors import StageError
from drift_ray.schema import trajectory_table
from drift_ray.training.data import load_training_data
from drift_ray.weighting import stage as weighting
from tests.integration.test_weighting import lineage, weights_of
from tests.unit.test_rescoring_stage import LENIENT, PARTS, UNGRADED, config_of, rescore, run_of

pytestmark = pytest.mark.usefixtures("ray_session")


def test_weights_by_other_verdicts(tmp_path: Path) -> None:
    store = run_of(tmp_path, [*PARTS, UNGRADED])
    by_verdicts = config_of(store, "reference", "weighting.verdicts=new", "weighting.name=new")
    with pytest.raises(StageError, match="drift-ray rescore"):
        weighting.run(store, by_verdicts, lineage())
    weighting.run(store, config_of(store, "reference"), lineage())
    found = rescore(store, LENIENT)
    summary = weighting.run(store, by_verdicts, lineage("other"))
    assert weighting.is_done(store, by_verdicts, lineage("other"))
    assert summary["verdicts"]["num_without_verdict"] == 1
    assert summary["ess_frac"]["mean"] == pytest.approx(found["weights"]["after"]["ess_frac"])
    before, after = weights_of(store), weights_of(store, "new")
    assert before.keys() == after.keys()
    assert after["r", 0] == 0.0
    assert after["r", 1] + after["r", 2] == pytest.approx(2.0)
    changes = pq.read_table(store.path("verdicts/new/weight_changes.parquet")).to_pylist()
    changed = {(row["prompt_id"], row["trajectory_index"]): row for row in changes}
    for key, weight in after.items():
        row = changed.get(key, {"before": before[key], "after": before[key]})
        assert (row["before"], row["after"]) == (
            pytest.approx(before[key]),
            pytest.approx(weight),
        )
    assert json.loads(Path(store.path("verdicts/new/summary.json")).read_text()) == found

    store.write_table("rollouts/part-000001.parquet", trajectory_table(PARTS[1][:1]))
    assert not weighting.is_done(store, by_verdicts, lineage("other"))
    with pytest.raises(StageError, match="judges other trajectories"):
        weighting.run(store, by_verdicts, lineage("other"))


def test_the_training_goes_no_further_than_the_turns_that_count(tmp_path: Path) -> None:
    store = run_of(tmp_path, PARTS[:1])
    recorded, by_verdicts = (
        config_of(store, "reference", "weighting.method=uniform", *more)
        for more in (("weighting.name=uniform",), ("weighting.verdicts=new", "weighting.name=new"))
    )
    rescore(store, LENIENT)
    weighting.run(store, recorded, lineage())
    weighting.run(store, by_verdicts, lineage())
    for loss_turns in ("last", "all"):
        old = load_training_data(store, weighting="uniform", loss_turns=loss_turns).train
        new = load_training_data(store, weighting="new", loss_turns=loss_turns).train
        # Two tokens of context and one a turn: the second of three turns is correct now.
        assert old.lengths.tolist() == [5, 4, 3, 3]
        assert new.lengths.tolist() == [4, 4, 3, 3]
        assert old.loss_mask[: old.lengths[0]].tolist() == [False] * 2 + (
            [False, False, True] if loss_turns == "last" else [True] * 3
        )
        assert new.loss_mask[: new.lengths[0]].tolist() == [False] * 2 + (
            [False, True] if loss_turns == "last" else [True] * 2
        )
        np.testing.assert_array_equal(new.token_ids[4:], old.token_ids[5:])
