"""The log of a command that nobody watches."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from drift_ray.logs import (
    LOG_FORMAT_VARIABLE,
    JsonFormatter,
    TextFormatter,
    log_context,
    log_to_stderr,
)


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("drift_ray.test")
    logger.addHandler(handler)
    yield stream
    logger.removeHandler(handler)


def test_a_line_says_of_what_it_is(written: io.StringIO) -> None:
    logger = logging.getLogger("drift_ray.test")
    logger.warning("before")
    with log_context(run="s3://bucket/run"), log_context(stage="rollout"):
        logger.warning("replica %d\nis lost", 3, extra={"replica": 3})
        try:
            raise ValueError("why")
        except ValueError:
            logger.exception("failed")
    before, lost, failed = map(json.loads, written.getvalue().splitlines())
    assert "run" not in before
    assert lost | {"time": ""} == {
        "time": "",
        "level": "WARNING",
        "logger": "drift_ray.test",
        "run": "s3://bucket/run",
        "stage": "rollout",
        "replica": 3,
        "message": "replica 3\nis lost",
    }
    assert lost["time"].endswith("+00:00")
    assert "ValueError: why" in failed["exception"]


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_no_login_of_a_url_is_written(formatter: logging.Formatter) -> None:
    record = logging.makeLogRecord({"msg": "at %s", "args": ("s3://KEY:SECRET@host/b",)})
    line = formatter.format(record)
    assert "SECRET" not in line
    assert "s3://***@host/b" in line


@pytest.mark.parametrize("form", ["json", "text"])
def test_the_form_is_a_matter_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    root, package = logging.getLogger(), logging.getLogger("drift_ray")
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr(package, "level", package.level)
    monkeypatch.setenv(LOG_FORMAT_VARIABLE, form)
    log_to_stderr()
    logging.getLogger("drift_ray.test").info("a part")
    line = capsys.readouterr().err.strip()
    assert line.startswith("{") is (form == "json")
    assert "drift_ray.test" in line
    assert "a part" in line
