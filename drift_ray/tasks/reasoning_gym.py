"""Problems of reasoning-gym: drawn by generator name and seed, and rebuilt from their golds.

A generator's scorer needs the whole entry, in Python's own types, which JSON does not keep. So a
gold is the entry's address, from which any process on any node makes the same entry again.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from drift_ray.errors import ConfigError, TaskError
from drift_ray.types import Prompt

if TYPE_CHECKING:
    from drift_ray.config import PromptsConfig

TEST_FRACTION = 0.2
_MOST_ENTRIES_PER_PROMPT = 50


def draw(config: PromptsConfig, run_seed: int) -> list[Prompt]:
    """The first ``num_prompts`` distinct questions of a split, in the generator's order.

    A question's hash decides its split, one in five is ``test``: the splits of a generator share
    no question, whatever their seeds. The generator is asked for at most 50 entries a prompt.

    Raises:
        TaskError: Unknown generator, unusable options, or too few distinct questions.
        ConfigError: reasoning-gym is not installed.
    """
    name, split = str(config.dataset), config.split or "train"
    seed = run_seed if config.seed is None else config.seed
    wanted = config.num_prompts or 1
    size = wanted * _MOST_ENTRIES_PER_PROMPT
    options = json.dumps(config.options, sort_keys=True)
    dataset = _dataset(name, seed, size, options)
    found: dict[str, Prompt] = {}
    for index in range(size):
        entry = dataset[index]
        question = str(entry["question"])
        if question in found or split_of(question) != split:
            continue
        gold = {
            "dataset": name,
            "seed": seed,
            "size": size,
            "index": index,
            "options": config.options,
            "answer": entry["answer"] if isinstance(entry["answer"], str) else None,
            "question": _digest(question),
        }
        prompt_id = f"{name}-{seed}-{index}"
        text = json.dumps(gold, sort_keys=True)
        found[question] = Prompt(prompt_id=prompt_id, task=name, question=question, gold=text)
        if len(found) == wanted:
            return list(found.values())
    raise TaskError(
        f"reasoning-gym {name}: {len(found)} distinct questions of split {split!r} among "
        f"{size} entries, but num_prompts is {wanted}",
        hint="lower num_prompts, or set options that make up more questions",
    )


def score(answer: str, gold: str) -> float:
    """The generator's own score of an answer, from 0 to 1.

    Args:
        answer: What was answered.
        gold: Of a prompt that :func:`draw` made.

    Raises:
        TaskError: The gold is of another source, or this version of reasoning-gym makes another
            entry of it.
        ConfigError: reasoning-gym is not installed.
    """
    try:
        address = json.loads(gold)
        key = (address["dataset"], address["seed"], address["size"])
        options, index, question = address["options"], address["index"], address["question"]
    except (ValueError, KeyError, TypeError):
        raise TaskError(
            f"the gold {gold[:80]!r} names no entry of reasoning-gym",
            hint="grader reasoning_gym goes with prompts of source reasoning_gym",
        ) from None
    dataset = _dataset(*key, json.dumps(options, sort_keys=True))
    entry = dataset[index]
    if _digest(str(entry["question"])) != question:
        raise TaskError(
            f"reasoning-gym {key[0]} makes another entry {index} of seed {key[1]} than the gold's",
            hint="install the version of reasoning-gym that the prompts were drawn with; some "
            "generators, as isomorphic_strings, also need one PYTHONHASHSEED in all processes",
        )
    return float(dataset.score_answer(answer, entry))


def split_of(question: str) -> str:
    """``test`` for one question in five, else ``train``; the same on every machine."""
    digest = hashlib.blake2b(question.encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest) < TEST_FRACTION * 2**64 else "train"


def load_package() -> Any:
    """Import reasoning-gym, which takes seconds.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import reasoning_gym
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"reasoning-gym cannot be imported: package {error.name!r} is missing",
            "Install drift-ray[reasoning-gym] on every node.",
        ) from None
    return reasoning_gym


@lru_cache(maxsize=8)
def _dataset(name: str, seed: int, size: int, options: str) -> Any:
    package = load_package()
    known = package.factory.DATASETS
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        raise TaskError(
            f"reasoning-gym has no generator {name!r}",
            hint=f"did you mean {' or '.join(close)}?" if close else f"it has {sorted(known)}",
        )
    try:
        return package.create_dataset(name, seed=seed, size=size, **json.loads(options))
    # Generators check their settings by assertions and their own exceptions.
    except Exception as error:
        raise TaskError(
            f"reasoning-gym {name} does not take the options {options}: "
            f"{type(error).__name__}: {error}",
            hint="see the generator's configuration class for the settings it has",
        ) from error


def _digest(question: str) -> str:
    return hashlib.blake2b(question.encode(), digest_size=8).hexdigest()
