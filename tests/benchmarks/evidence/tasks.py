"""Prompts and reference policies of the tasks, made once and kept in the folder of the evidence."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift_ray.config import PromptsConfig
from drift_ray.tasks import addition, reasoning_gym
from drift_ray.types import Prompt
from tests.benchmarks.evidence import pupil
from tests.benchmarks.evidence.plan import MORE, TEST, TRAIN, VALIDATION, Scale, Task

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

_PROMPT_SEED = 0
_NUM_TAUGHT = 20_000
"""Questions from which the dialogues of the reasoning-gym model are drawn."""


def prompt_file(folder: Path, kind: str) -> Path:
    """Where training, validation or test prompts lie."""
    return folder / f"{kind}.jsonl"


def write_prompts(task: Task, folder: Path, scale: Scale) -> None:
    """Write the prompts of every kind, unless they are there; only MORE shares some, with TRAIN.

    Raises:
        SystemExit: The folder holds those of other sizes.
    """
    sizes = {
        TRAIN: scale.num_train,
        VALIDATION: scale.num_validation,
        TEST: scale.num_test,
        MORE: scale.num_more,
    }
    sizes_file = folder / "sizes.json"
    made: dict[str, int] = json.loads(sizes_file.read_text()) if sizes_file.exists() else {}
    if made == sizes:
        return
    if made.items() - sizes.items():
        raise SystemExit(f"{folder} was made for other sizes: choose another --out")
    before = scale.num_train + scale.num_validation
    train = _draw(task, "train", before + scale.num_more - scale.num_train)
    folder.mkdir(parents=True, exist_ok=True)
    for kind, prompts in (
        (TRAIN, train[: scale.num_train]),
        (VALIDATION, train[scale.num_train : before]),
        (TEST, _draw(task, "test", scale.num_test)),
        (MORE, train[: scale.num_train] + train[before:]),
    ):
        if kind in made:
            continue
        rows = [{"id": p.prompt_id, "question": p.question, "answer": p.gold} for p in prompts]
        prompt_file(folder, kind).write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes_file.write_text(json.dumps(sizes))  # last: all of them are there


def _draw(task: Task, split: addition.Split, num: int) -> list[Prompt]:
    if task.name == addition.TASK:
        return addition.prompts(split, num, _PROMPT_SEED)
    config = PromptsConfig(
        source="reasoning_gym",
        dataset=pupil.DATASET,
        split=split,
        options=pupil.OPTIONS,
        num_prompts=num,
    )
    return reasoning_gym.draw(config, _PROMPT_SEED)


def make_model(task: Task, folder: Path, scale: Scale) -> str:
    """The task's reference policy; that of reasoning-gym is taught here, unless it is there."""
    if task.name == addition.TASK:
        return "builtin:nano"
    out = folder / "model"
    if not out.exists():
        _teach(out, scale.reasoning_steps)
    return str(out.resolve())


def _teach(out: Path, steps: int) -> None:
    import torch

    from drift_ray.nano.train import Recipe, train

    torch.set_num_threads(os.cpu_count() or 1)
    package = reasoning_gym.load_package()
    dataset = package.create_dataset(pupil.DATASET, seed=1, size=_NUM_TAUGHT, **pupil.OPTIONS)
    entries = (dataset[index] for index in range(_NUM_TAUGHT))
    taught = [
        (entry["question"], entry["answer"])
        for entry in entries
        if reasoning_gym.split_of(entry["question"]) == "train"
    ]

    def show(step: int, loss: float) -> None:
        if (step + 1) % 50 == 0:
            print(f"teaching {out}: step {step + 1}/{steps}, loss {loss:.4f}", flush=True)

    model, tokenizer = start()
    train(
        tokenizer,
        Recipe(steps=steps, batch_size=64, learning_rate=2e-3),
        show,
        draw=lambda rng: pupil.dialogue(*rng.choice(taught), rng),
        model=model,
    )
    save(model, tokenizer, out)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """A policy as a Hugging Face folder, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".model-") as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        Path(scratch).rename(folder)
        Path(scratch).mkdir()  # which the block's end removes


def start() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """What teaching begins with: the nano model, which can add, with the words of the new task."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    from drift_ray.nano import model_dir
    from drift_ray.nano.tokenizer import build_tokenizer
    from drift_ray.nano.train import build_model

    tokenizer = build_tokenizer(pupil.WORDS)
    vocabulary = AutoTokenizer.from_pretrained(model_dir()).get_vocab()
    nano = LlamaForCausalLM.from_pretrained(model_dir(), dtype=torch.float32)
    torch.manual_seed(0)
    model = build_model(tokenizer)
    embedding = model.get_input_embeddings().weight.detach().clone()  # of new tokens: as drawn
    for token, index in tokenizer.get_vocab().items():
        if token in vocabulary:
            embedding[index] = nano.get_input_embeddings().weight[vocabulary[token]].detach()
    tied = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), embedding)
    model.load_state_dict({**nano.state_dict(), **tied})
    return model, tokenizer
