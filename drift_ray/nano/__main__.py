"""Make the nano model: ``python -m drift_ray.nano --out DIR`` (``make nano``)."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from drift_ray.errors import EXIT_INTERRUPTED
from drift_ray.nano.card import write_card
from drift_ray.nano.tokenizer import build_tokenizer
from drift_ray.nano.train import Recipe, train


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m drift_ray.nano", description="Train the nano reference policy."
    )
    parser.add_argument("--out", type=Path, required=True, help="Hugging Face folder to write")
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    parser.add_argument("--steps", type=_positive, default=Recipe().steps)
    parser.add_argument("--threads", type=_positive, default=1, help="CPU threads of torch")
    return parser.parse_args(argv)


def make(out: Path, recipe: Recipe) -> None:
    """Train and measure the model; the folder's files change only when all are ready."""
    started = time.monotonic()

    def show(step: int, loss: float) -> None:
        done = step + 1
        if done % max(1, recipe.steps // 100) == 0:
            left_s = (time.monotonic() - started) * (recipe.steps - done) / done
            print(f"step {done}/{recipe.steps}  loss {loss:.4f}  {left_s:.0f} s left", flush=True)

    tokenizer = build_tokenizer()
    model = train(tokenizer, recipe, show)
    print("measuring on held-out sums", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".nano-") as scratch:
        tokenizer.save_pretrained(scratch)
        model.save_pretrained(scratch)
        write_card(Path(scratch), model, tokenizer, recipe)
        out.mkdir(exist_ok=True)
        for file in sorted(Path(scratch).iterdir()):
            file.chmod(0o644)  # as shipped: some writers make files private
            os.replace(file, out / file.name)


def main(argv: list[str]) -> int:
    """Run the recipe; returns the exit code."""
    args = _parse(argv)
    torch.set_num_threads(args.threads)
    try:
        make(args.out, Recipe(steps=args.steps, seed=args.seed))
    except KeyboardInterrupt:
        print(f"interrupted: {args.out} is as it was", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
