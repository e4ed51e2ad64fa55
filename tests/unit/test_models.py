"""Model folders: found, complete, and identified by everything that shapes what they sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drift_ray.errors import ModelError
from drift_ray.models import BUILTIN_NANO, model_fingerprint, resolve_model
from tests.unit.scripted import write_model


def test_a_complete_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    assert resolve_model(str(folder)) == folder


def test_a_folder_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_model(tmp_path / "m")
    assert resolve_model("~/m") == tmp_path / "m"


def test_the_built_in_model_has_a_name() -> None:
    from drift_ray.nano import model_dir

    assert BUILTIN_NANO == "builtin:nano"
    assert resolve_model(BUILTIN_NANO) == model_dir()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["config.json"], "model configuration"),
        (["model.safetensors"], "safetensors weights"),
        (["tokenizer.json", "tokenizer_config.json"], "tokenizer"),
    ],
)
def test_an_incomplete_folder_names_what_it_lacks(
    tmp_path: Path, names: list[str], said: str
) -> None:
    folder = write_model(tmp_path / "m")
    for name in names:
        (folder / name).unlink()
    with pytest.raises(ModelError) as caught:
        resolve_model(str(folder))
    assert str(folder) in str(caught.value)
    assert said in str(caught.value)
    assert "save_pretrained" in caught.value.hint


@pytest.mark.parametrize("path", ["./none", "/none/at/all", "~/none"])
def test_a_path_is_never_looked_for_on_the_hub(path: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda _: pytest.fail("asked the hub"))
    with pytest.raises(ModelError, match="There is no model") as caught:
        resolve_model(path)
    assert path in str(caught.value)
    assert "builtin:nano" in caught.value.hint


def proxy_error() -> Exception:
    from huggingface_hub import _snapshot_download as download

    return download.httpx2.ProxyError("407 Proxy Authentication Required")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "error",
    [
        lambda: OSError("first line\nsecond line"),
        lambda: OSError(),  # has no first line
        lambda: __import__("huggingface_hub").errors.LocalEntryNotFoundError("not cached"),
        lambda: __import__("huggingface_hub").errors.HFValidationError("Repo id must be …"),
        proxy_error,
    ],
    ids=["os", "silent", "offline", "invalid", "proxy"],
)
def test_what_the_hub_says_is_passed_on(
    error: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    raised = error()

    def fail(_: str) -> str:
        raise raised

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelError) as caught:
        resolve_model("org/name")
    assert "org/name" in str(caught.value)
    assert str(raised).split("\n")[0] in str(caught.value)
    assert "second line" not in str(caught.value)


def test_a_model_of_the_hub_must_be_complete_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "cache")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda _: str(folder))
    with pytest.raises(ModelError, match="safetensors"):
        resolve_model("org/name")


def test_a_copy_has_the_same_fingerprint(tmp_path: Path) -> None:
    assert model_fingerprint(write_model(tmp_path / "a")) == model_fingerprint(
        write_model(tmp_path / "b")
    )


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("config.json", {"weights"}),
        ("model.safetensors", {"weights"}),
        ("model-00002-of-00002.safetensors", {"weights"}),
        ("tokenizer.json", {"tokenizer"}),
        ("tokenizer_config.json", {"tokenizer"}),
        ("chat_template.jinja", {"chat_template"}),
        ("README.md", set()),
        ("training_args.bin", set()),
    ],
)
def test_each_file_changes_its_field(tmp_path: Path, name: str, fields: set[str]) -> None:
    folder = write_model(tmp_path / "m")
    before = model_fingerprint(folder)
    (folder / name).write_text("changed")
    after = model_fingerprint(folder)
    assert {field for field in before if before[field] != after[field]} == fields


@pytest.mark.parametrize(
    "name",
    [
        "generation_config.json",  # vLLM stops at its eos_token_id whatever SamplingParams say
        "vocab.json",
        "merges.txt",
        "special_tokens_map.json",
        "added_tokens.json",
        "tokenizer.model",
        "modeling_own.py",  # runs with model.trust_remote_code
    ],
)
def test_every_file_that_shapes_the_samples_counts(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / "m")
    (folder / name).write_text("one")
    before = model_fingerprint(folder)
    (folder / name).write_text("two")
    assert model_fingerprint(folder) != before
