"""On-policy RL as another library does it: TRL's GRPO, whose rollouts are this package's episodes.

TRL trains with its own defaults (one step a round, advantages divided by the group's standard
deviation, tokens of a batch weighted alike, no KL term), but for what the task says: the learning
rate and its constant schedule, float32, no recomputed activations. TRL samples with transformers
here, as it does without a vLLM that it knows; prompts, chat format, rules and returns are those of
every other method.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drift_ray.config import RunConfig
from drift_ray.models import resolve_model
from drift_ray.rollout.chat import ChatFormat
from drift_ray.rollout.episode import Episode, Rules
from drift_ray.rollout.protocol import Completion, Request
from drift_ray.tasks.environment import make_environment
from drift_ray.tasks.graders import get_grader
from drift_ray.tasks.parsing import prefill
from drift_ray.types import Prompt, StopReason, Trajectory
from tests.benchmarks.evidence.tasks import save

Costs = dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """A trajectory as TRL takes it."""

    prompt_ids: list[int]
    completion_ids: list[int]
    """All after the first prompt: feedback too."""
    env_mask: list[int]
    """1 where the policy sampled, 0 where the environment spoke."""
    value: float
    """What it is worth."""


def train(config: RunConfig, prompts: Sequence[Prompt], folders: Mapping[int, str]) -> list[Costs]:
    """Train on-policy with TRL and save policies.

    Args:
        config: Of the run: its rounds, group size, rules, learning rate and seed are followed.
        prompts: To learn from; a question stands once.
        folders: Where to save the policies, by the number of rounds they have learnt from.

    Returns:
        What each round has cost: ``num_trajectories``, ``num_sampled_tokens``,
        ``sampling_cpu_s``, ``sampling_s``, ``training_cpu_s`` and ``training_s``.
    """
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    # A second one hardly makes so small a model faster, and would be charged.
    torch.set_num_threads(1)
    reference = str(resolve_model(config.model.path))
    tokenizer = AutoTokenizer.from_pretrained(reference)
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32)
    rollout = Rollout(config, prompts, tokenizer)
    clock = Clock()

    def sample(questions: list[str], trainer: Any) -> dict[str, Any]:
        with clock.sampling():
            found = rollout(trainer.accelerator.unwrap_model(trainer.model), questions)
        clock.count(found)
        return {
            "prompt_ids": [each.prompt_ids for each in found],
            "completion_ids": [each.completion_ids for each in found],
            # Not asked for: a step follows its own samples at once, so that no ratio is needed.
            "logprobs": None,
            "env_mask": [each.env_mask for each in found],
            "value": [each.value for each in found],
        }

    class AfterStep(TrainerCallback):
        def on_step_end(self, _: Any, state: Any, __: Any, **___: Any) -> None:
            clock.end_round()
            if state.global_step in folders:
                save(model, tokenizer, Path(folders[state.global_step]))
            clock.start()

    group = config.rollout.group_size
    with tempfile.TemporaryDirectory() as scratch:
        trainer = GRPOTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=worth,
            train_dataset=Dataset.from_list([{"prompt": each.question} for each in prompts]),
            rollout_func=sample,
            callbacks=[AfterStep()],
            args=GRPOConfig(
                output_dir=scratch,
                seed=config.seed,
                max_steps=config.rounds.num_rounds,
                num_generations=group,
                per_device_train_batch_size=config.rounds.prompts_per_round * group,
                gradient_accumulation_steps=1,
                learning_rate=config.training.learning_rate,
                lr_scheduler_type="constant",
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
        )
        clock.start()
        trainer.train()
    return clock.rounds


def worth(value: list[float], **_: Any) -> list[float]:
    """What the rollout said."""
    return value


class Clock:
    """Tells what rounds cost, sampling apart from the rest."""

    def __init__(self) -> None:
        self.rounds: list[Costs] = []
        self.start()

    def start(self) -> None:
        """A round begins."""
        self._round: Costs = dict.fromkeys(
            ("num_trajectories", "num_sampled_tokens", "sampling_cpu_s", "sampling_s"), 0.0
        )
        self._began = time.process_time(), time.monotonic()

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Around what is sampling."""
        cpu_s, wall_s = time.process_time(), time.monotonic()
        yield
        self._round["sampling_cpu_s"] += time.process_time() - cpu_s
        self._round["sampling_s"] += time.monotonic() - wall_s

    def count(self, found: Sequence[Sampled]) -> None:
        """What was sampled."""
        self._round["num_trajectories"] += len(found)
        self._round["num_sampled_tokens"] += sum(sum(each.env_mask) for each in found)

    def end_round(self) -> None:
        """A round ends; all that was not sampling was training."""
        cpu_s, wall_s = time.process_time() - self._began[0], time.monotonic() - self._began[1]
        done = self._round
        done["training_cpu_s"] = cpu_s - done["sampling_cpu_s"]
        done["training_s"] = wall_s - done["sampling_s"]
        self.rounds.append(done)


class Rollout:
    """Plays episodes turn by turn, all of them at once, with a model of transformers.

    Args:
        config: Of the run.
        prompts: By whose questions TRL asks.
        tokenizer: Of the model.
    """

    def __init__(self, config: RunConfig, prompts: Sequence[Prompt], tokenizer: Any) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._by_question = {each.question: each for each in prompts}
        environment = config.task.environment
        self._make = partial(
            make_environment, config=environment, grade=get_grader(config.task.grader)
        )
        self._rules = Rules(
            chat=ChatFormat(tokenizer, prefill(environment.think), config.model.history),
            sampling=config.rollout.sampling,
            max_model_len=int(config.replicas.engine.arguments["max_model_len"]),
            seed=config.seed,
        )

    def __call__(self, model: Any, questions: Sequence[str]) -> list[Sampled]:
        """One trajectory for each question; one that stands several times is played as often."""
        episodes = [self._open(number, question) for number, question in enumerate(questions)]
        live = list(episodes)
        for each in live:
            each.react(each.pending_call()())
        while live := [each for each in live if not each.done]:
            requests = [each.request() for each in live]
            for each, completion in zip(live, self._generate(model, requests), strict=True):
                each.complete(completion)
                each.react(each.pending_call()())
        return [self._taken(each.trajectory()) for each in episodes]

    def _open(self, number: int, question: str) -> Episode:
        prompt = self._by_question[question]
        make = partial(self._make, prompt)
        return Episode(prompt, trajectory_index=number, make_environment=make, rules=self._rules)

    @torch.inference_mode()
    def _generate(self, model: Any, requests: Sequence[Request]) -> list[Completion]:
        pad, end = self._tokenizer.pad_token_id, self._tokenizer.eos_token_id
        longest = max(len(each.token_ids) for each in requests)
        token_ids = torch.full((len(requests), longest), pad)
        mask = torch.zeros_like(token_ids)
        for row, each in enumerate(requests):
            token_ids[row, longest - len(each.token_ids) :] = torch.tensor(each.token_ids)
            mask[row, longest - len(each.token_ids) :] = 1
        sampling = requests[0].sampling
        found = model.generate(
            input_ids=token_ids,
            attention_mask=mask,
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            max_new_tokens=max(each.max_tokens for each in requests),
            pad_token_id=pad,
            eos_token_id=end,
        )[:, longest:]
        return [
            _completion(each, row, end) for each, row in zip(requests, found.numpy(), strict=True)
        ]

    def _taken(self, trajectory: Trajectory) -> Sampled:
        first = trajectory.turns[0].token_start
        sampled = ~np.isnan(trajectory.logprobs[first:])
        turn = trajectory.first_success_turn
        gamma = self._config.weighting.gamma
        return Sampled(
            prompt_ids=trajectory.token_ids[:first].tolist(),
            completion_ids=trajectory.token_ids[first:].tolist(),
            env_mask=sampled.astype(int).tolist(),
            value=trajectory.format_penalty + (gamma ** (turn - 1) if turn else 0.0),
        )


def _completion(request: Request, row: Any, end: int) -> Completion:
    """What was sampled for a request: up to its end-of-turn token, or as far as it may go."""
    ends = np.flatnonzero(row[: request.max_tokens] == end)
    token_ids = row[: ends[0] + 1 if len(ends) else request.max_tokens].astype(np.int32)
    return Completion(
        request_id=request.request_id,
        token_ids=token_ids,
        logprobs=np.zeros(len(token_ids), np.float32),  # known to be sampled; nobody reads more
        stop_reason=StopReason.STOP if len(ends) else StopReason.LENGTH,
    )
