"""Model folders: where they lie, whether they are complete, and what identifies them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from drift_ray.errors import ModelError

BUILTIN_NANO = "builtin:nano"

_FINGERPRINTED = {
    # Code in the folder runs with trust_remote_code.
    "weights": ("*.safetensors", "config.json", "*.py"),
    "tokenizer": (
        "tokenizer*",
        "vocab*",
        "merges.txt",
        "special_tokens_map.json",
        "added_tokens.json",
    ),
    "chat_template": ("chat_template*",),
    # vLLM ends a turn at its eos_token_id, whatever the request says.
    "generation": ("generation_config.json",),
}


def resolve_model(path: str) -> Path:
    """The local Hugging Face folder behind a model's name.

    Args:
        path: A folder, a hub id (``org/name``, downloaded or found in the hub's cache), or
            ``builtin:nano``.

    Raises:
        ModelError: There is no such model, or the folder lacks a config, weights or tokenizer.
    """
    if path == BUILTIN_NANO:
        from drift_ray.nano import model_dir

        return model_dir()
    folder = Path(path).expanduser()
    if not folder.is_dir():
        folder = _from_hub(path)
    for pattern, what in (
        ("config.json", "model configuration"),
        ("*.safetensors", "safetensors weights"),
        ("tokenizer*.json", "tokenizer"),
    ):
        if not any(folder.glob(pattern)):
            raise ModelError(
                f"The model folder {folder} has no {what} ({pattern}).",
                "Save it with save_pretrained() of transformers, tokenizer included.",
            )
    return folder


def absolute_model_path(path: str) -> str:
    """A relative folder as an absolute one: workers have working directories of their own."""
    folder = Path(path).expanduser()
    return str(folder.absolute()) if folder.is_dir() else path


def model_fingerprint(folder: Path) -> dict[str, str]:
    """Hashes of everything in a model folder that shapes what it samples."""
    return {
        part: _digest(sorted(file for pattern in patterns for file in folder.glob(pattern)))
        for part, patterns in _FINGERPRINTED.items()
    }


def _from_hub(path: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    hint = (
        "Give the path of a Hugging Face folder (on a cluster: one that every node sees), "
        "a hub id with the network at hand, or builtin:nano."
    )
    if path.startswith((".", "/", "~", "builtin:")):
        raise ModelError(f"There is no model {path!r}.", hint)
    try:
        return Path(snapshot_download(path))
    except (HFValidationError, HTTPError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"No model {path!r}: no such folder, and the hub says: {reason}", hint
        ) from None


def _digest(files: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(file.name.encode())
        with open(file, "rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
