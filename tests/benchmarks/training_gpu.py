"""Training on one GPU in the shapes of Qwen2.5: ours against Hugging Face's Trainer.

Parameters are random. A row is a trajectory of so many tokens, the last 512 of which carry loss; a
step takes 128k tokens, at least two rows. Activations are bfloat16, parameters and AdamW's state
float32. Every trainer meets every row length in a process of its own; running out of memory is a
result.

- ``reference``, ``reference, frugal``: as in ``training.py``;
- ``ours``: compiled layers, packed micro-batches;
- ``ours, recomputing``: with activation checkpointing, too.

MFU = model FLOPs/s / peak FLOPs/s. A token's model FLOPs, forward and backward: 6 for every
parameter of a decoder layer's matrices, and 6 x num_layers x num_heads x head_dim x row length for
causal attention (half of the square); a loss token's: 6 x hidden_size x vocab_size more. So nobody
is credited with padding, recomputation or logits of the context.

Needs torch, transformers, accelerate and this package without extras; neither Ray nor vLLM.
Run as ``python tests/benchmarks/training_gpu.py [--shapes NAME …] [--rows N …] [--out FILE]``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _trainers import Run, in_fresh_process, train_ours, train_reference
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from drift_ray.config import TrainingConfig
from drift_ray.training.data import LongestSample, TrainingData

GIB = 1 << 30
LOSS_TOKENS = 512
STEP_TOKENS = 1 << 17
WARMUP_STEPS, TIMED_STEPS = 2, 3

# From config.json of Qwen/Qwen2.5-{0.5B,1.5B,3B} on the Hugging Face hub.
_QWEN = {
    "vocab_size": 151936,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "tie_word_embeddings": True,
}
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen2.5-0.5B": _QWEN
    | {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
    },
    "Qwen2.5-1.5B": _QWEN
    | {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
    },
    "Qwen2.5-3B": _QWEN
    | {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
    },
}
ROWS = [2 << 10, 8 << 10, 16 << 10, 64 << 10]

TINY = "tiny"
TINY_SHAPE = _QWEN | {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TINY_ROWS = [32, 96]

PEAK_TFLOPS = {
    # Dense bfloat16, from NVIDIA's data sheets; the first name that the device's contains counts.
    "H100 PCIe": 756.0,
    "H100": 989.4,
    "H200": 989.4,
    "A100": 312.0,
    "L40S": 362.05,
}
PUBLISHED = [
    # Model, row, MFU: a published mark for a model of 0.6 billion parameters on one H100.
    ("0.6B, one H100", 8 << 10, 0.168),
    ("0.6B, one H100", 16 << 10, 0.237),
    ("0.6B, one H100", 64 << 10, None),
]

TRAINERS = ("reference", "reference, frugal", "ours", "ours, recomputing")


def trainer(name: str) -> Callable[[PreTrainedModel, TrainingData, TrainingConfig], Run]:
    if name.startswith("ours"):
        return train_ours
    return partial(train_reference, frugal="frugal" in name)


def make_config(name: str, row: int, *, tiny: bool, micro_batch_tokens: int) -> TrainingConfig:
    return TrainingConfig(
        batch_size=4 if tiny else max(2, STEP_TOKENS // row),
        micro_batch_tokens=max(row, 128 if tiny else micro_batch_tokens),
        learning_rate=1e-4,
        warmup_frac=0.0,
        dtype="float32" if tiny else "bfloat16",
        activation_checkpointing="recomputing" in name,
        compile=not tiny,
        checkpoint_every_steps=10**6,
        checkpoint_every_minutes=10**6,
    )


def make_data(num_rows: int, row: int, vocab_size: int) -> TrainingData:
    rng = np.random.default_rng(0)
    num_loss_tokens = min(LOSS_TOKENS, row // 2)
    return TrainingData(
        token_ids=rng.integers(0, vocab_size, num_rows * row, dtype=np.int32),
        offsets=np.arange(num_rows + 1, dtype=np.int64) * row,
        lengths=np.full(num_rows, row, dtype=np.int64),
        loss_mask=np.tile(np.arange(row) >= row - num_loss_tokens, num_rows),
        ref_logprobs=np.zeros(num_rows * row, np.float32),
        importance_weight=rng.exponential(size=num_rows),
        num_zero_weight=0,
        num_without_loss=0,
        left_out_weight_frac=0.0,
        tokens_hash="random",
        longest=LongestSample(num_tokens=row, part="random", row=0, prompt_id="random"),
    )


def model_flops(config: Qwen2Config, num_rows: int, row: int, num_loss_tokens: int) -> float:
    """Forward and backward, as the module's docstring has it."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_dim = hidden // heads
    attention = hidden * head_dim * (2 * heads + 2 * config.num_key_value_heads)
    layer = attention + 3 * hidden * config.intermediate_size + heads * head_dim * row
    per_row = row * config.num_hidden_layers * layer + num_loss_tokens * hidden * config.vocab_size
    return 6.0 * num_rows * per_row


def contend(
    name: str, shape: str, row: int, device: str, micro_batch_tokens: int
) -> dict[str, Any]:
    """Train in this process; the first steps are not timed."""
    tiny = shape == TINY
    config = Qwen2Config(
        **(TINY_SHAPE if tiny else SHAPES[shape]), max_position_embeddings=row, dtype="float32"
    )
    training = make_config(name, row, tiny=tiny, micro_batch_tokens=micro_batch_tokens)
    data = make_data((WARMUP_STEPS + TIMED_STEPS) * training.batch_size, row, config.vocab_size)
    torch.manual_seed(0)
    try:
        with torch.device(device):
            model = Qwen2ForCausalLM(config)
        run = trainer(name)(model, data, training)
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    seconds = run.ended_at_s[-1] - run.ended_at_s[WARMUP_STEPS - 1]
    num_rows = TIMED_STEPS * training.batch_size
    flops = model_flops(config, num_rows, row, int(data.loss_mask[:row].sum()))
    return {
        "out_of_memory": False,
        "losses": run.losses,
        "grad_norms": run.grad_norms,
        "tokens_per_s": num_rows * row / seconds,
        "model_flops_per_s": flops / seconds,
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


def print_table(results: list[dict[str, Any]], device: str, peak_flops: float | None) -> None:
    table = Table(
        title=f"{device}, {TIMED_STEPS} steps",
        caption="MFU without padding, recomputation and context logits; published: as its source",
    )
    for column in ("model", "row", "trainer", "tokens/s", "MFU", "peak GiB", "last loss"):
        table.add_column(column, justify="left" if column in ("model", "trainer") else "right")
    for result in results:
        key = result["shape"], f"{result['row']:,}", result["trainer"]
        if result["out_of_memory"]:
            table.add_row(*key, "out of memory")
            continue
        mfu = result["model_flops_per_s"] / peak_flops if peak_flops else None
        peak = result["peak_bytes"]
        table.add_row(
            *key,
            f"{result['tokens_per_s']:,.0f}",
            "-" if mfu is None else f"{mfu:.1%}",
            "-" if peak is None else f"{peak / GIB:.1f}",
            f"{result['losses'][-1]:.4f}",
        )
    for model, row, published in PUBLISHED if peak_flops else []:
        speed = "out of memory" if published is None else "-"
        table.add_row(
            model, f"{row:,}", "published", speed, "-" if published is None else f"{published:.1%}"
        )
    Console(width=110).print(table)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--trainers", nargs="+", choices=TRAINERS, default=TRAINERS)
    parser.add_argument("--micro-batch-tokens", type=int, default=16384)
    parser.add_argument("--peak-tflops", type=float, help="of a GPU that is not known here")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape in float32: a check")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/training_gpu.json"))
    parser.add_argument("--contend", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.contend:
        print(json.dumps(contend(*json.loads(args.contend))))
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        print("skipped: no GPU")
        return
    shapes, rows = ([TINY], TINY_ROWS) if args.tiny else (args.shapes, args.rows)
    results = []
    for shape in shapes:
        for row in rows:
            for name in args.trainers:
                print(f"{shape}, rows of {row:,} tokens, {name}", file=sys.stderr)
                arguments = [name, shape, row, args.device, args.micro_batch_tokens]
                result = in_fresh_process(__file__, arguments)
                results.append({"shape": shape, "row": row, "trainer": name, **result})
    device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    tflops = args.peak_tflops or next((t for n, t in PEAK_TFLOPS.items() if n in device), None)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"device": device, "results": results}, indent=2))
    print_table(results, device, tflops and tflops * 1e12)
    print(f"results in {args.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
