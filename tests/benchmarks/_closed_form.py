"""A multi-turn problem small enough to write down, and DRIFT's own code on samples of it.

Two prompts, three turns. The policy writes ``0``, ``1`` or the end of its answer, at most two
tokens a turn; the environment repeats a wrong answer, and says nothing of one without an end. All
trajectories are known, so are π_ref and, in float64,

    π*(τ|x) = π_ref(τ|x)·exp(R(τ)/β) / Z(x).

The policy is a table with a row of logits for every context, so that it can be any distribution:
what training converges to is what its loss fits. With f(τ) the share of π*'s mass that a loss
gives a trajectory, the minimiser has π(v|c) ∝ Σ f(τ) over the τ that carry loss on token v after c:

- ``all, sum``: f = π*: the closed form.
- ``all, mean``: f = π*/|τ|, with |τ| the sampled tokens: the same optimum with every trajectory
  tilted by its length, not by its return.
- ``last, mean`` (published) and ``last, sum``: a turn learns from the trajectories that end in it.
  Before the last turn those are the successes alone, whatever their weight against the others: the
  policy tends to certain success at once, and β has no say in it. (A table shares nothing between
  turns. A language model does, and makes a few small steps: it feels this pull, no more.)

Weights are normalised by their group's mean, an estimate of Z(x): a bias of O(1/group size). With
one group a prompt it vanishes as samples grow; in groups of a fixed size it stays, however many
there are, because the best of a group share its weight.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from drift_ray.config import EnvironmentConfig, SamplingConfig, TrainingConfig, WeightingConfig
from drift_ray.rollout.chat import ChatFormat
from drift_ray.rollout.episode import Episode, Rules
from drift_ray.rollout.protocol import Completion
from drift_ray.schema import trajectory_table
from drift_ray.store import RunStore
from drift_ray.tasks.environment import UnaryFeedbackEnvironment
from drift_ray.tasks.graders import grade_reference
from drift_ray.training.data import TrainingData, load_training_data
from drift_ray.training.loss import WeightedNLL
from drift_ray.training.optimizer import build_optimizer, learning_rate
from drift_ray.training.passes import batch_gradient
from drift_ray.types import Prompt, StopReason, Trajectory
from drift_ray.weighting.part import return_table, weight_table
from drift_ray.weighting.weigh import weigh_groups

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

WEIGHTING = WeightingConfig(beta=0.25)
ENVIRONMENT = EnvironmentConfig(think=False, max_turns=3, system_prompt=None, feedback="{answer}?")
MAX_TOKENS = 2
END = 2
MESSAGES = [m for n in (1, 2) for m in product(range(3), repeat=n) if END not in m[:-1]]
MESSAGES = [m for m in MESSAGES if len(m) == MAX_TOKENS or m[-1] == END]
"""All that can be said in a turn: an answer or none, with or without its end."""
NUM_STEPS = 120
NEVER = -50.0
"""Logit of the tokens that only the environment writes."""


class Letters:
    """A tokenizer whose tokens are the tags and single letters; the policy samples the first 3."""

    tokens = ("0", "1", "</answer>", "<answer>", "?", "|")
    chat_template = "messages, each ended by |"

    def apply_chat_template(self, messages: list[dict[str, str]], **_: object) -> str:
        return "".join(message["content"] + "|" for message in messages)

    def encode(self, text: str, **_: object) -> list[int]:
        ids = []
        while text:
            # A text that is no letter is ChatFormat's mark, which is cut out before it is encoded.
            ids.append(next(i for i, token in enumerate(self.tokens) if text.startswith(token)))
            text = text[len(self.tokens[ids[-1]]) :]
        return ids

    def decode(self, ids: Iterable[int], **_: object) -> str:
        return "".join(self.tokens[i] for i in ids)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Problem:
    """All M trajectories of all prompts, and C contexts in which a token is sampled."""

    table: pa.Table
    """One row a trajectory; see ``TRAJECTORY_SCHEMA``."""
    prompt: Ints
    """Shape ``[M]``."""
    contexts: dict[bytes, int]
    """Row of the policy's table by all tokens before a sampled one."""
    ref_logits: Floats
    """Shape ``[C, vocabulary]``."""
    row: Ints
    context: Ints
    token: Ints
    """Shape ``[number of sampled tokens]``, as the two above: trajectory, context and token."""
    in_last_turn: npt.NDArray[np.bool_]
    """Likewise: whether it is of its trajectory's last turn."""

    @property
    def num_prompts(self) -> int:
        return int(self.prompt.max()) + 1

    def log_prob(self, logits: Floats) -> Floats:
        """log π(τ|x) of a table of logits, shape ``[M]``."""
        log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        sampled = log_probs[self.context, self.token]
        return np.bincount(self.row, weights=sampled, minlength=len(self.prompt))

    def optimum(self) -> Floats:
        """log π*(τ|x), by the definition alone; shape ``[M]``."""
        exponent = self.log_prob(self.ref_logits) + self.returns() / WEIGHTING.beta
        log_z = [np.logaddexp.reduce(exponent[self.prompt == x]) for x in range(self.num_prompts)]
        return exponent - np.array(log_z)[self.prompt]

    def returns(self) -> Floats:
        """R(τ), turn by turn from the records; shape ``[M]``."""
        worth = []
        for turns in self.table["turns"].to_pylist():
            answers = [norm for turn in turns for norm in turn["answer_norms"]]
            discounted = sum(WEIGHTING.gamma**k * turn["reward"] for k, turn in enumerate(turns))
            unparsed = sum(not turn["format_ok"] for turn in turns)
            repeated = 1 - len(set(answers)) / len(answers) if answers else 0.0
            worth.append(
                discounted
                + ENVIRONMENT.format_penalty * unparsed
                - WEIGHTING.repetition_penalty * repeated
            )
        return np.array(worth)

    def divergence(self, log_p: Floats, log_q: Floats) -> float:
        """KL(p‖q) in nats, the mean over prompts: a sum over all trajectories."""
        possible = np.isfinite(log_p)
        log_p, log_q = log_p[possible], log_q[possible]
        return max(0.0, float(np.exp(log_p) @ (log_p - log_q))) / self.num_prompts

    def limit(self, loss_turns: str, token_reduction: str) -> Floats:
        """log π(τ|x) of what a loss fits with samples without end: see the module."""
        mass = np.exp(self.optimum())
        carries = self.in_last_turn | (loss_turns == "all")
        if token_reduction == "mean":
            mass = mass / np.bincount(self.row, weights=carries)
        counts = np.zeros_like(self.ref_logits)
        np.add.at(counts, (self.context[carries], self.token[carries]), mass[self.row[carries]])
        reached = counts.sum(1, keepdims=True) > 0  # elsewhere it stays as it began
        with np.errstate(divide="ignore"):
            return self.log_prob(np.where(reached, np.log(counts), self.ref_logits))

    def rate(self) -> float:
        """lim n·KL(π_θ‖π*) for ``all, sum``, by the delta method, with n samples a prompt.

        ½ Σ_c Σ_v E_π*[w·(1_v - π*(v|c))²; c] / π*(c, v): weighted samples are as many as w says.
        """
        best = self.optimum()
        mass, weight = np.exp(best), np.exp(best - self.log_prob(self.ref_logits))
        first, second = np.zeros((2, *self.ref_logits.shape))
        np.add.at(first, (self.context, self.token), mass[self.row])
        np.add.at(second, (self.context, self.token), (mass * weight)[self.row])
        first, second = first[:, : END + 1], second[:, : END + 1]
        p = first / first.sum(1, keepdims=True)
        spread = second * (1 - p) ** 2 + (second.sum(1, keepdims=True) - second) * p**2
        return float((spread / first).sum()) / 2 / self.num_prompts


@cache
def make_problem(seed: int = 0) -> Problem:
    """Play every trajectory there is, under a reference policy that is drawn at random."""
    rng = np.random.default_rng(seed)
    prompts = [
        Prompt(prompt_id=f"x{gold}", task="t", question="?" * (gold + 1), gold=str(gold))
        for gold in range(2)
    ]
    contexts: dict[bytes, int] = {}
    logits: list[Floats] = []

    def logits_after(token_ids: list[int]) -> Floats:
        index = contexts.setdefault(np.array(token_ids, np.int64).tobytes(), len(contexts))
        if index == len(logits):
            logits.append(np.append(rng.normal(0.0, 0.7, END + 1), [NEVER] * 3))
        return logits[index]

    trajectories = [each for prompt in prompts for each in _all_trajectories(prompt, logits_after)]
    steps = [
        (row, contexts[t.token_ids[:i].astype(np.int64).tobytes()], t.token_ids[i], last)
        for row, t in enumerate(trajectories)
        for turn in t.turns
        for last in [turn is t.turns[-1]]
        for i in range(turn.token_start, turn.token_end)
    ]
    row, context, token, in_last_turn = map(np.array, zip(*steps, strict=True))
    numbers = {prompt.prompt_id: number for number, prompt in enumerate(prompts)}
    return Problem(
        table=trajectory_table(trajectories),
        prompt=np.array([numbers[t.prompt_id] for t in trajectories]),
        contexts=contexts,
        ref_logits=np.array(logits),
        row=row,
        context=context,
        token=token,
        in_last_turn=in_last_turn,
    )


def _all_trajectories(prompt: Prompt, logits_after: Any) -> Iterator[Trajectory]:
    ways: list[tuple[tuple[int, ...], ...]] = [()]
    number = 0
    while ways:
        way = ways.pop()
        episode = _played(prompt, number, way, logits_after)
        if episode.done:
            yield episode.trajectory()
            number += 1
        else:
            ways += [(*way, message) for message in MESSAGES]


def _played(
    prompt: Prompt, number: int, messages: tuple[tuple[int, ...], ...], logits_after: Any
) -> Episode:
    """A real episode after these messages of the policy."""
    episode = Episode(
        prompt,
        trajectory_index=number,
        make_environment=lambda: UnaryFeedbackEnvironment(
            prompt, config=ENVIRONMENT, grade=grade_reference
        ),
        rules=Rules(
            chat=ChatFormat(Letters(), "<answer>"),
            sampling=SamplingConfig(max_tokens=MAX_TOKENS),
            max_model_len=64,
            seed=0,
        ),
    )
    episode.react(episode.pending_call()())
    for message in messages:
        request = episode.request()
        tokens, logprobs = list(request.token_ids), []
        for token in message:
            logits = logits_after(tokens)
            logprobs.append(logits[token] - np.logaddexp.reduce(logits))
            tokens.append(token)
        episode.complete(
            Completion(
                request_id=request.request_id,
                token_ids=np.array(message, np.int32),
                logprobs=np.array(logprobs, np.float32),
                stop_reason=StopReason.STOP if message[-1] == END else StopReason.LENGTH,
            )
        )
        episode.react(episode.pending_call()())
    return episode


def sample_weights(
    problem: Problem, num_samples: int, rng: np.random.Generator, group_size: int | None = None
) -> Floats:
    """Draw trajectories of π_ref and weigh them as the weighting stage does.

    Equal trajectories of a prompt add up: the loss is linear in the weights.

    Args:
        problem: Gives the trajectories.
        num_samples: A prompt.
        rng: Draws.
        group_size: Trajectories that share a mean; None: all of a prompt.

    Returns:
        Shape ``[M]``: mean weight of a sample times M, 0 for what was not drawn.
    """
    ref = np.exp(problem.log_prob(problem.ref_logits))
    draws = np.concatenate(
        [
            own[rng.choice(len(own), num_samples, p=ref[own] / ref[own].sum())]
            for own in (np.flatnonzero(problem.prompt == x) for x in range(problem.num_prompts))
        ]
    )
    narrow = problem.table.select(
        ["prompt_id", "trajectory_index", "first_success_turn", "format_penalty", "turns"]
    )
    returns = return_table(narrow, WEIGHTING).take(draws)
    groups = np.arange(len(draws)) // (group_size or num_samples)
    returns = returns.set_column(0, "prompt_id", pa.array(groups.astype(str)).dictionary_encode())
    weight = weigh_groups(returns, WEIGHTING, run_beta=None).importance_weight
    return np.bincount(draws, weights=weight, minlength=len(ref)) * len(ref) / len(draws)


class TablePolicy(nn.Module):
    """A row of logits for every context, in the shape of a causal language model."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.logits = nn.Embedding.from_pretrained(
            torch.tensor(problem.ref_logits, dtype=torch.float32), freeze=False
        )
        size = problem.ref_logits.shape[1]
        self.head = nn.Linear(size, size, bias=False).requires_grad_(False)
        nn.init.eye_(self.head.weight)
        self._contexts = problem.contexts
        self._rows_of = lru_cache(maxsize=8)(self._look_up)

    @property
    def device(self) -> torch.device:
        return self.logits.weight.device

    def get_decoder(self) -> Any:
        return self._decode

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def _decode(self, input_ids: Tensor, position_ids: Tensor, **_: object) -> SimpleNamespace:
        rows = self._rows_of(input_ids.numpy().tobytes(), position_ids.numpy().tobytes())
        return SimpleNamespace(last_hidden_state=self.logits(rows)[None])

    def _look_up(self, token_ids: bytes, position_ids: bytes) -> Tensor:
        """Row of every token's prefix; any for prefixes after which nothing is sampled."""
        num_before = np.frombuffer(position_ids, np.int64)
        begins = 8 * (np.arange(len(num_before)) - num_before)
        rows = [
            self._contexts.get(token_ids[begin : 8 * (end + 1)], 0)
            for end, begin in enumerate(begins.tolist())
        ]
        return torch.tensor(rows)


def fit(
    problem: Problem,
    weight: Floats,
    loss_turns: Literal["last", "all"],
    token_reduction: Literal["mean", "sum"],
    num_steps: int = NUM_STEPS,
) -> Floats:
    """Train from π_ref to the minimum of the weighted loss; returns log π_θ(τ|x), shape ``[M]``."""
    config = TrainingConfig(
        learning_rate=1.0,
        schedule="cosine",
        warmup_frac=0.0,
        weight_decay=0.0,
        token_reduction=token_reduction,
        micro_batch_tokens=1 << 20,
    )
    data = _training_data(problem, weight, loss_turns)
    module = WeightedNLL(TablePolicy(problem))
    optimizer = build_optimizer(module, config)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps, config)
        optimizer.zero_grad()
        batch_gradient(module, data, np.arange(len(data)), config)
        optimizer.step()
    return problem.log_prob(module.policy.logits.weight.detach().double().numpy())


def _training_data(
    problem: Problem, weight: Floats, loss_turns: Literal["last", "all"]
) -> TrainingData:
    returns = return_table(problem.table, WEIGHTING)
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(folder)
        store.write_table("rollouts/part-000000.parquet", problem.table)
        store.write_table("weights/drift/part-000000.parquet", weight_table(returns, weight, {}))
        return load_training_data(store, weighting="drift", loss_turns=loss_turns).train
