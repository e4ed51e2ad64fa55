"""Weighted fine-tuning: ours against Hugging Face's Trainer in the shape of the DRIFT reference.

The nano model plays the demo's sums first. Those trajectories, for the larger shapes with every
message some times as long, are what all train on: in one order, from equal parameters, in float32,
32 of them a step (8 at 135M, which takes minutes even so). Each contender runs in a process of its
own, and in a second one for the peak of its memory, where glibc gives back at once what is freed:

- ``reference``: what its script does, see ``_trainers``, with the accumulation bug mended;
- ``reference, frugal``: without the script's activation checkpointing and second loss;
- ``reference, accumulation bug``: its gradients are 16 times as large; for the nano model alone;
- ``ours``: :func:`drift_ray.training.loop.train`;
- ``ours, recomputing``: with activation checkpointing, as the reference has it.

Run as ``python tests/benchmarks/training.py [--shapes NAME …] [--repeats N] [--out FILE]``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _trainers import data_order, in_fresh_process, train_ours, train_reference
from _trajectories import WEIGHTING, sample_nano, stretch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from drift_ray.config import TrainingConfig
from drift_ray.nano import model_dir
from drift_ray.store import RunStore
from drift_ray.training.data import load_training_data

LOSS_RTOL = 1e-3
"""Losses of all steps agree to this: sums in another order, and AdamW makes their signs count."""
CONTENDERS = ("reference", "reference, frugal", "ours", "ours, recomputing")
WITH_BUG = "reference, accumulation bug"
MIB = 1 << 20
NUM_PROMPTS = 48
CONFIG = TrainingConfig(
    learning_rate=1e-4,
    warmup_frac=0.0,  # the Trainer's begins with a step of length zero, ours does not
    checkpoint_every_steps=10**6,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A model, how long its trajectories are, and how it is trained."""

    name: str
    config: dict[str, Any] | None
    """Of a Llama with random parameters; None: the nano model as it ships."""
    stretch: int
    """Length of a message in the nano model's messages."""
    steps: int
    """Timed ones; one more comes before them."""
    micro_batch_tokens: int
    batch_size: int = 32

    @property
    def vocab_size(self) -> int:
        return self.config["vocab_size"] if self.config else 0


SHAPES = [
    Shape(name="nano", config=None, stretch=1, steps=11, micro_batch_tokens=512),
    Shape(
        name="30M",
        config={
            "vocab_size": 32000,
            "hidden_size": 384,
            "intermediate_size": 1024,
            "num_hidden_layers": 10,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
        },
        stretch=10,
        steps=2,
        micro_batch_tokens=768,
    ),
    # HuggingFaceTB/SmolLM2-135M, config.json
    Shape(
        name="135M",
        config={
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
        },
        stretch=10,
        steps=1,
        micro_batch_tokens=768,
        batch_size=8,
    ),
]


def make_model(shape: Shape) -> PreTrainedModel:
    if shape.config is None:
        return AutoModelForCausalLM.from_pretrained(model_dir(), dtype=torch.float32)
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            **shape.config, max_position_embeddings=8192, tie_word_embeddings=True, dtype="float32"
        )
    )


def memory_bytes(name: str) -> int:
    """A figure of this process: ``RssAnon``, ``RssFile``, or ``VmHWM``, the peak of their sum."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise LookupError(name)


def contend(contender: str, shape: Shape, folder: str, threads: int, steps: int) -> dict[str, Any]:
    """Train in this process; the first step is not timed."""
    torch.set_num_threads(threads)
    model = make_model(shape)
    data = load_training_data(RunStore(folder), weighting=WEIGHTING, loss_turns="last").train
    num_samples = (steps + 1) * shape.batch_size
    data = replace(
        data,
        offsets=data.offsets[: num_samples + 1],
        lengths=data.lengths[:num_samples],
        importance_weight=data.importance_weight[:num_samples],
    )
    config = CONFIG.model_copy(
        update={
            "batch_size": shape.batch_size,
            "micro_batch_tokens": shape.micro_batch_tokens,
            "activation_checkpointing": contender == "ours, recomputing",
        }
    )
    Path("/proc/self/clear_refs").write_text("5")
    loaded = memory_bytes("RssAnon")
    if contender.startswith("ours"):
        run = train_ours(model, data, config)
    else:
        run = train_reference(
            model,
            data,
            config,
            frugal=contender == "reference, frugal",
            with_accumulation_bug=contender == WITH_BUG,
        )
    timed = data_order(data, config)[shape.batch_size :]
    return {
        "losses": run.losses,
        "grad_norms": run.grad_norms,
        "seconds": run.ended_at_s[-1] - run.ended_at_s[0],
        "cpu_seconds": run.cpu_at_s[-1] - run.cpu_at_s[0],
        "num_trajectories": len(timed),
        "num_tokens": int(data.lengths[timed].sum()),
        # Without pages of files: libraries' code.
        "peak_bytes": memory_bytes("VmHWM") - memory_bytes("RssFile") - loaded,
        # Gradients and two moments in float32: AdamW with accumulation needs no less.
        "state_bytes": 12 * sum(p.numel() for p in model.parameters()),
    }


def in_process(contender: str, shape: Shape, run: RunStore, threads: int) -> dict[str, Any]:
    """:func:`contend` in fresh processes, with as many threads from their first moment on."""
    arguments = [contender, shape.name, run.url, threads]
    timed = in_fresh_process(__file__, [*arguments, shape.steps], OMP_NUM_THREADS=str(threads))
    measured = in_fresh_process(
        __file__,
        [*arguments, 1],
        OMP_NUM_THREADS=str(threads),
        MALLOC_MMAP_THRESHOLD_=str(64 << 10),
    )
    return timed | {"peak_bytes": measured["peak_bytes"]}


def compare(shape: Shape, run: RunStore, repeats: int, threads: int) -> dict[str, Any]:
    contenders = [*CONTENDERS, WITH_BUG] if shape.config is None else [*CONTENDERS]
    rounds = []
    for _ in range(repeats):
        rounds.append({name: in_process(name, shape, run, threads) for name in contenders})
        contenders.reverse()  # so that a busy minute does not always meet the same one
    ours = rounds[0]["ours"]
    medians = {}
    for name in contenders:
        numbers = [key for key, value in ours.items() if not isinstance(value, list)]
        medians[name] = {key: median(each[name][key] for each in rounds) for key in numbers}
        first = rounds[0][name]
        medians[name] |= {
            "gradient_factor": first["grad_norms"][0] / ours["grad_norms"][0],
            "loss_difference": max(
                abs(loss / expected - 1)
                for loss, expected in zip(first["losses"], ours["losses"], strict=True)
            ),
        }
    load = os.getloadavg()[0]
    return {"shape": asdict(shape), "load": load, "medians": medians, "rounds": rounds}


def print_table(results: list[dict[str, Any]], repeats: int, threads: int) -> None:
    table = Table(
        title=f"{threads} threads, median of {repeats}",
        caption="state: gradients and AdamW's moments; loss difference: largest |1 - loss / ours|",
    )
    table.add_column("model")
    table.add_column("trainer")
    for column in (
        *("trajectories/s", "tokens/s", "time / ours", "peak MiB", "of it state", "peak / ours"),
        *("first gradient / ours", "loss difference"),
    ):
        table.add_column(column, justify="right")
    for result in results:
        ours = result["medians"]["ours"]
        for name, each in result["medians"].items():
            table.add_row(
                result["shape"]["name"],
                name,
                f"{each['num_trajectories'] / each['seconds']:,.2f}",
                f"{each['num_tokens'] / each['seconds']:,.0f}",
                f"{each['seconds'] / ours['seconds']:.2f}",
                f"{each['peak_bytes'] / MIB:,.0f}",
                f"{each['state_bytes'] / MIB:,.0f}",
                f"{each['peak_bytes'] / ours['peak_bytes']:.2f}",
                f"{each['gradient_factor']:.3f}",
                f"{each['loss_difference']:.1e}",
            )
    Console(width=150).print(table)


def check_losses(results: list[dict[str, Any]]) -> None:
    """All that are correct took the same steps."""
    for result in results:
        for name in CONTENDERS:
            difference = result["medians"][name]["loss_difference"]
            assert difference <= LOSS_RTOL, (result["shape"]["name"], name, difference)
    print(f"the losses of all steps agree to {LOSS_RTOL:.0e}, the accumulation bug mended")


def main(argv: list[str]) -> None:
    names = [shape.name for shape in SHAPES]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=names, default=names)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/training.json"))
    parser.add_argument("--contend", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    shapes = {shape.name: shape for shape in SHAPES}
    if args.contend:
        contender, name, url, threads, steps = json.loads(args.contend)
        print(json.dumps(contend(contender, shapes[name], url, threads, steps)))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        played = sample_nano(root / "nano", NUM_PROMPTS)
        results = []
        for name in args.shapes:
            shape = shapes[name]
            run = stretch(
                played,
                root / f"stretched-{name}",
                factor=shape.stretch,
                num_rows=(shape.steps + 1) * shape.batch_size,
                vocab_size=shape.vocab_size,
            )
            results.append(compare(shape, run, args.repeats, args.threads))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=2))
    print_table(results, args.repeats, args.threads)
    check_losses(results)
    print(f"results in {args.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
