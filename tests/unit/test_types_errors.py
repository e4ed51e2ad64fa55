"""Records are immutable; errors are complete messages that cross process borders."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from typing import Any

import pytest

from drift_ray import errors, types
from drift_ray.errors import (
    EXIT_INTERRUPTED,
    ConfigError,
    DriftRayError,
    EngineLostError,
    StageError,
    StorageError,
    TaskError,
)
from tests.unit.scripted import trajectory

ERRORS = [
    each
    for each in vars(errors).values()
    if inspect.isclass(each) and issubclass(each, DriftRayError)
]
RECORDS = [each for each in vars(types).values() if dataclasses.is_dataclass(each)]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("hint", ["", "do that"])
def test_errors_pickle_whole(error: type[DriftRayError], hint: str) -> None:
    original = error("part x is bad", hint)
    for made in (original, error("part x is bad", hint=hint)):
        copy = pickle.loads(pickle.dumps(made))
        assert type(copy) is error
        assert (copy.message, copy.hint) == ("part x is bad", hint)
        assert str(copy) == str(original)


@pytest.mark.parametrize("error", ERRORS)
def test_the_message_says_what_and_what_to_do(error: type[DriftRayError]) -> None:
    assert str(error("it is bad")) == "it is bad"
    assert str(error("it is bad", "do that")).split() == ["it", "is", "bad", "→", "do", "that"]


def test_every_kind_of_error_has_a_documented_meaning_and_an_exit_code_of_its_own() -> None:
    codes = [error.exit_code for error in ERRORS]
    # A user sees both as the stage's failure: it could not go on with the engines it had.
    assert EngineLostError.exit_code == StageError.exit_code
    assert len(set(codes)) == len(ERRORS) - 1 > 5
    # 0 means success; shells use 126 and above.
    assert all(0 < code < 126 for code in codes)
    assert EXIT_INTERRUPTED == 130
    assert all(error.__doc__ and error.__doc__ != DriftRayError.__doc__ for error in ERRORS[1:])


@pytest.mark.parametrize(
    ("error", "standard"),
    [
        (ConfigError, ValueError),
        (TaskError, ValueError),
        (StorageError, OSError),
        (StageError, RuntimeError),
    ],
)
def test_callers_may_catch_the_standard_exception(
    error: type[DriftRayError], standard: type[Exception]
) -> None:
    assert issubclass(error, standard)


def test_a_storage_error_does_not_pretend_to_know_an_errno() -> None:
    error = StorageError("No space left.", "Free some.")
    assert error.errno is None or isinstance(error.errno, int)


@pytest.mark.parametrize("record", RECORDS)
def test_records_are_frozen_keyword_only_and_slotted(record: Any) -> None:
    assert record.__dataclass_params__.frozen
    assert "__slots__" in vars(record)
    assert all(field.kw_only for field in dataclasses.fields(record))


def test_records_pickle() -> None:
    original = trajectory("p", answers=["1", "2"], success=True)
    copy = pickle.loads(pickle.dumps(original))
    assert copy.turns == original.turns
    assert copy.token_ids.tolist() == original.token_ids.tolist()
    with pytest.raises(dataclasses.FrozenInstanceError):
        copy.seed = 1


def test_reasons_are_their_own_names() -> None:
    assert [str(reason) for reason in types.StopReason] == [
        "stop",
        "length",
        "trajectory_length",
        "context_window",
    ]
    assert [str(reason) for reason in types.EndReason] == [
        "success",
        "max_turns",
        "max_actions",
        "max_tokens",
        "context_window",
    ]
    assert [str(cause) for cause in types.FailureCause] == [
        "engine",
        "environment",
        "grader",
        "deadline",
        "context_window",
        "replica",
    ]
