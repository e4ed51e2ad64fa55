"""A scripted engine and small makers of records: for tests of scheduling and bookkeeping only."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from drift_ray.config import EnvironmentConfig, RunConfig, SamplingConfig
from drift_ray.config_file import load_config
from drift_ray.rollout import player
from drift_ray.rollout.chat import ChatFormat
from drift_ray.rollout.episode import Episode, Reaction, Rules
from drift_ray.rollout.protocol import Completion, Refusal, Request
from drift_ray.rollout.referee import Referee, Ruling
from drift_ray.tasks.environment import Environment, UnaryFeedbackEnvironment
from drift_ray.tasks.graders import grade_reference
from drift_ray.tasks.parsing import prefill
from drift_ray.types import EndReason, Message, Prompt, StopReason, Trajectory, Turn
from tests.modelled import complete

Reply = Callable[[Request], Sequence[int]]


class ScriptedEngine:
    """Replies with a function of the request alone, after a number of steps.

    Args:
        reply: Sampled tokens of a request; what exceeds its ``max_tokens`` is cut off.
        num_steps: Engine steps a request takes.
        tokenizer: For tests that read it off the engine.
        max_num_seqs: What it says of itself; it takes any number.
    """

    def __init__(
        self,
        reply: Reply,
        num_steps: Callable[[Request], int] = lambda _: 1,
        *,
        tokenizer: Any = None,
        max_model_len: int = 512,
        max_num_seqs: int = 64,
    ) -> None:
        self._reply = reply
        self._num_steps = num_steps
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self.max_num_seqs = max_num_seqs
        self.loaded: list[Path] = []
        """Folders whose weights it was given, in order."""
        self.in_flight: dict[str, int] = {}
        self.requests: dict[str, Request] = {}
        """Everything ever submitted, by request id."""

    def submit(self, request: Request) -> None:
        assert request.request_id not in self.requests
        assert request.max_tokens >= 1
        self.requests[request.request_id] = request
        self.in_flight[request.request_id] = self._num_steps(request)

    def load_weights(self, folder: Path) -> None:
        assert not self.in_flight
        self.loaded.append(folder)

    def step(self) -> Sequence[Completion | Refusal]:
        self.in_flight = {name: left - 1 for name, left in self.in_flight.items()}
        finished = [name for name, left in self.in_flight.items() if left <= 0]
        for name in finished:
            del self.in_flight[name]
        return [self.complete(self.requests[name]) for name in finished]

    def complete(self, request: Request) -> Completion:
        return complete(request, list(self._reply(request)))


class PromptReferee(Referee):
    """Rules at once, on the caller's thread: nothing depends on the machine's speed."""

    def __init__(self) -> None:
        super().__init__(num_threads=1, deadline_s=1.0)
        self._rulings: list[Ruling] = []

    def submit(self, key: str, judge: Callable[[], Reaction]) -> None:
        try:
            self._rulings.append(Ruling(key=key, reaction=judge()))
        except ValueError as error:
            self._rulings.append(Ruling(key=key, error=error))

    def poll(self, timeout_s: float = 0.0) -> list[Ruling]:
        rulings, self._rulings = self._rulings, []
        return rulings


def play(engine: Any, episodes: Iterable[Episode]) -> Iterator[Trajectory]:
    """The trajectories of episodes, as they end; none may fail."""
    for each, failure in player.play(engine, episodes, PromptReferee()):
        assert failure is None
        yield each.trajectory()


def random_reply(tokenizer: Any, *, end: str = "<|end|>") -> Reply:
    """Sums that are sometimes right, without their closing tag, or too long."""
    closed = tokenizer.encode("</answer>" + end, add_special_tokens=False)
    digits = tokenizer.encode("0123456789", add_special_tokens=False)

    def reply(request: Request) -> list[int]:
        rng = random.Random(f"{request.seed} {request.token_ids}")
        number = rng.choices(digits, k=rng.choice([1, 1, 1, 2, 9]))
        return number + (closed if rng.random() < 0.8 else closed[-1:])

    return reply


def episode(
    prompt: Prompt,
    tokenizer: Any,
    *,
    trajectory_index: int = 0,
    max_tokens: int = 8,
    max_model_len: int = 512,
    max_tokens_per_traj: int | None = None,
    max_attempts: int = 1,
    history: Literal["append", "template"] = "append",
    seed: int = 0,
    make_environment: Callable[[], Environment] | None = None,
    **environment: Any,
) -> Episode:
    """An episode with thinking off and no system message, unless ``environment`` says so."""
    config = EnvironmentConfig(**{"think": False, "system_prompt": None, **environment})
    return Episode(
        prompt,
        trajectory_index=trajectory_index,
        make_environment=make_environment
        or (lambda: UnaryFeedbackEnvironment(prompt, config=config, grade=grade_reference)),
        rules=Rules(
            chat=ChatFormat(tokenizer, prefill(config.think), history),
            sampling=SamplingConfig(max_tokens=max_tokens, max_tokens_per_traj=max_tokens_per_traj),
            max_model_len=max_model_len,
            seed=seed,
            max_attempts=max_attempts,
        ),
    )


def prompts(golds: Iterable[str]) -> list[Prompt]:
    return [
        Prompt(prompt_id=f"p{index}", task="t", question=f"{index}+0=?", gold=gold)
        for index, gold in enumerate(golds)
    ]


def trajectory(
    prompt_id: str,
    trajectory_index: int = 0,
    *,
    answers: Sequence[str] = ("1",),
    success: bool = False,
    num_context: int = 2,
    format_penalty: float = 0.0,
) -> Trajectory:
    """A record with one turn of one token an answer; ``success``: the last one was correct."""
    turns = tuple(
        Turn(
            turn_index=index,
            text=f"<answer>{answer}</answer>",
            canonical_text=f"<answer>{answer}</answer>",
            answers=(answer,),
            answer_norms=(answer,),
            reward=float(success and index == len(answers) - 1),
            format_ok=True,
            stop_reason=StopReason.STOP,
            prompt_start=0,
            token_start=num_context + index,
            token_end=num_context + index + 1,
        )
        for index, answer in enumerate(answers)
    )
    return Trajectory(
        prompt_id=prompt_id,
        trajectory_index=trajectory_index,
        task="t",
        question="q",
        gold="1",
        messages=(Message(role="user", content="q"),),
        turns=turns,
        token_ids=np.arange(num_context + len(turns), dtype=np.int32),
        logprobs=np.asarray([np.nan] * num_context + [-0.5] * len(turns), np.float32),
        first_success_turn=len(answers) if success else None,
        format_penalty=format_penalty,
        end_reason=EndReason.SUCCESS if success else EndReason.MAX_TURNS,
        seed=0,
    )


def write_model(folder: Path) -> Path:
    """The files of a Hugging Face model folder, with bytes that mean nothing."""
    folder.mkdir(parents=True)
    for name in (
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ):
        (folder / name).write_text(f"{name}, as it was")
    return folder


def write_config(folder: Path, **settings: Any) -> Path:
    """A configuration file (JSON is YAML) for the addition task and the model at ``folder/m``."""
    if not (folder / "m").exists():
        write_model(folder / "m")
    path = folder / "config.yaml"
    raw = {
        "run": str(folder / "run"),
        "model": {"path": str(folder / "m")},
        "task": {
            "name": "addition",
            "train": {"source": "addition", "split": "train", "num_prompts": 5},
            "test": {"source": "addition", "split": "test", "num_prompts": 3},
        },
        "rollout": {"group_size": 2, "prompts_per_part": 2},
    }
    path.write_text(json.dumps(raw | settings))
    return path


def run_config(folder: Path, *overrides: str) -> RunConfig:
    return load_config(write_config(folder), overrides)
