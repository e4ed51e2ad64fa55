"""The nano reference policy: a 0.7M-parameter chat model that adds two-digit numbers, badly.

It stands for a real instruct model wherever one would be too slow (tests, demo): it answers in
``<answer>…</answer>``, errs systematically and at random, and often repeats a wrong answer when
told that it was wrong. ``model_dir()`` holds it as a Hugging Face folder; ``python -m
drift_ray.nano --out DIR`` makes it anew (``tokenizer``, ``dialogues``, ``train``, ``measure``).
"""

from pathlib import Path


def model_dir() -> Path:
    """The Hugging Face folder of the shipped model: loads in transformers and in vLLM."""
    return Path(__file__).parent / "model"
