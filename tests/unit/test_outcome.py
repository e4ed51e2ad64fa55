"""What became of a command stands in the run directory, for those who were not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drift_ray.cli import main
from drift_ray.errors import DataError, EngineLostError, ModelError, StorageError
from drift_ray.outcome import CommandOutcome, read_outcome, recorded
from drift_ray.store import OUTCOME_FILE, RUN_FILE, RunStore


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore(str(tmp_path / "run"))
    store.write_json(RUN_FILE, {})
    return store


def outcome(store: RunStore) -> CommandOutcome:
    found = read_outcome(store)
    assert found is not None
    return found


def fail(store: RunStore, error: BaseException) -> None:
    with recorded(store, ["train"]) as at:
        at("train")
        raise error


def test_a_command_at_work_and_done(store: RunStore) -> None:
    assert read_outcome(store) is None
    with recorded(store, ["weigh", "train"]) as at:
        assert (outcome(store).state, outcome(store).step) == ("running", None)
        at("train")
        now = outcome(store)
        assert (now.state, now.step) == ("running", "train")
    done = outcome(store)
    assert (done.state, done.error) == ("done", None)
    assert done.stages == ["weigh", "train"]
    assert done.began_s == now.began_s <= done.time_s


@pytest.mark.parametrize(
    ("error", "state", "says"),
    [
        (ModelError("No model.", "Fetch it."), "failed", "No model.\n  → Fetch it."),
        (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero"),
        (EngineLostError("lost s3://key:word@host"), "failed", "lost s3://***@host"),
        (KeyboardInterrupt(), "interrupted", None),
        (SystemExit(15), "interrupted", None),
        (ValueError("x" * 9999), "failed", f"ValueError: {'x' * 1988}"),
    ],
)
def test_what_went_wrong_is_told_and_raised(
    store: RunStore, error: BaseException, state: str, says: str | None
) -> None:
    with pytest.raises(type(error)) as caught:
        fail(store, error)
    assert caught.value is error
    found = outcome(store)
    assert (found.state, found.error) == (state, says)
    assert found.step == "train"


def test_a_run_goes_on_where_its_outcome_cannot_be_written(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise StorageError("no space")

    monkeypatch.setattr(RunStore, "write_json", fail)
    with recorded(store, ["train"]) as at:
        at("train")
    with pytest.raises(ModelError, match="first"), recorded(store, ["train"]):
        raise ModelError("first")
    assert "The outcome is not recorded: no space" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"state": "done"}'])
def test_a_damaged_outcome_is_named(store: RunStore, text: str) -> None:
    store.write_bytes(OUTCOME_FILE, text.encode())
    with pytest.raises(DataError, match=OUTCOME_FILE) as caught:
        read_outcome(store)
    assert "Delete it" in caught.value.hint


def test_the_command_tells_it(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    with recorded(store, ["train"]) as at:
        at("train")
        assert main(["status", store.url]) == 0
        assert "train: at work in train since" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ModelError):
        fail(store, ModelError("It has [no] tokenizer."))
    assert main(["status", store.url]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "train: failed in train at" in said
    assert "It has [no] tokenizer." in said
    assert main(["status", "--json", store.url]) == 0
    assert json.loads(capsys.readouterr().out)["outcome"]["state"] == "failed"
