"""Prompts, the environment that answers, and who judges."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from drift_ray.config.section import PositiveInt, Section
from drift_ray.grader_config import GraderChoice, ImportPath

_FEEDBACK_FIELDS = ("answer", "reward", "turn", "max_turns", "turns_left", "actions_left", "hint")

_MOST_MADE_UP = 1_000_000
"""Problems of reasoning-gym: made one by one and held, so a slip of the pen would never end."""
_ANSWER = "put your final answer between <answer> and </answer>. "
_RETRY = (
    "If you are told that it is incorrect, look for the mistake and give a different answer in the "
    "same form."
)
_SYSTEM_PROMPTS = {
    True: f"Solve the problem. Reason between <think> and </think>, then {_ANSWER}{_RETRY}",
    False: f"Solve the problem and {_ANSWER}{_RETRY}",
}


class PromptsConfig(Section):
    """Where problems come from."""

    source: Literal[
        "addition", "jsonl", "csv", "parquet", "huggingface", "benchmark", "reasoning_gym"
    ]
    """Two-digit sums made up on the spot; a file of JSON objects, one a line; a CSV file whose
    first line names the fields; a Parquet file; a data set of the Hugging Face hub; a benchmark
    whose fields are known; problems that reasoning-gym makes up."""
    path: str | None = None
    """The file, on any fsspec URL. For ``benchmark``: a file or folder to read instead of the
    hub."""
    dataset: str | None = None
    """``huggingface``: the hub id. ``benchmark``: metamathqa, math500, gsm8k, hendrycks_math,
    theoremqa, gpqa, mmlu, mmlu_redux, mmlu_pro or mtu_bench. ``reasoning_gym``: the generator's
    name."""
    subset: str | None = None
    """``huggingface``: the data set's configuration. ``benchmark``: this one instead of all."""
    split: str | None = Field(default=None, min_length=1)
    """For ``addition``, ``reasoning_gym`` (``train`` or ``test``, disjoint), ``huggingface``:
    ``train`` when omitted. For ``benchmark``: its own when omitted."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """For ``reasoning_gym``; the run's when omitted."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """For ``reasoning_gym``: the generator's own settings."""
    type_prefix: str | None = None
    """For ``benchmark``: take rows whose ``type`` starts so; for metamathqa ``MATH_`` when omitted,
    an empty one takes all."""
    num_prompts: PositiveInt | None = None
    """Take this many, the first ones; all when omitted."""
    id_field: str | None = None
    """Row field that names the prompt; derived from the question when omitted."""
    question_field: str = "question"
    """Row field that is asked; a benchmark knows its own."""
    gold_field: str = "answer"
    """Row field that counts as correct; a benchmark knows its own."""
    max_question_chars: PositiveInt = 100_000
    """A row with a longer question is a bad one."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """``stop`` at the first row without a usable question, gold and id of its own. ``skip`` leaves
    such rows out, logs each with file and row, and counts them."""

    @model_validator(mode="after")
    def _source_has_what_it_needs(self) -> PromptsConfig:
        if self.source in ("jsonl", "csv", "parquet") and not self.path:
            raise ValueError(f"source {self.source!r} needs a path")
        if self.source in ("huggingface", "benchmark", "reasoning_gym") and not self.dataset:
            raise ValueError(f"source {self.source!r} needs a dataset")
        made_up = self.source in ("addition", "reasoning_gym")
        if made_up and self.split not in (None, "train", "test"):
            raise ValueError(
                f"source {self.source!r} has splits train and test, not {self.split!r}"
            )
        if self.source == "reasoning_gym" and self.num_prompts is None:
            raise ValueError("source 'reasoning_gym' makes up any number: set num_prompts")
        if self.source == "reasoning_gym" and (self.num_prompts or 1) > _MOST_MADE_UP:
            raise ValueError(
                f"source 'reasoning_gym' makes up at most {_MOST_MADE_UP:,} problems, not "
                f"{self.num_prompts:,}"
            )
        return self


class EnvironmentConfig(Section):
    """The simulated user: unary feedback ("wrong, think again") for up to ``max_turns`` turns."""

    think: bool = True
    """Ask for <think>…</think> before <answer>…</answer>."""
    max_turns: PositiveInt = 5
    """Messages the policy may write, the first one included."""
    max_actions_per_turn: Annotated[int, Field(ge=0)] = 1
    """Answers executed of one message; 0 means no limit."""
    max_actions_per_traj: PositiveInt = 5
    """Answers executed in a whole trajectory."""
    format_penalty: Annotated[float, Field(le=0.0, allow_inf_nan=False)] = -0.1
    """Reward of every turn that has no parseable answer."""
    system_prompt: str | None = Field(
        default_factory=lambda data: _SYSTEM_PROMPTS[data.get("think", True)]
    )
    """Asks for the tags when omitted; null sends no system message."""
    user_template: str = "{question}"
    """The opening message; ``{question}`` stands for the question."""
    feedback: str = "Incorrect. Please think again."
    """What the policy hears after every wrong message. ``{answer}`` stands for its last answer,
    ``{reward}`` for the message's reward, ``{turn}`` for its 1-based number, ``{max_turns}``,
    ``{turns_left}`` and ``{actions_left}`` for budgets, ``{hint}`` for what ``hint`` returns."""
    hint: ImportPath | None = None
    """A function of your own, ``hint(answer, gold) -> str``, as ``package.module:function``: what
    it says of the last answer stands for ``{hint}``; nothing where a message held no answer."""
    path: ImportPath | None = None
    """An environment of your own, ``package.module:Class``, made for every trajectory as
    ``Class(prompt, config=EnvironmentConfig, grade=Grader)``; unary feedback when omitted."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """For an environment of your own, which reads them as ``config.options``."""

    @model_validator(mode="after")
    def _templates_fit(self) -> EnvironmentConfig:
        if "{question}" not in self.user_template:
            raise ValueError("user_template must contain {question}")
        if self.path is None and self.options:
            raise ValueError("options are for an environment of your own: set path")
        for word in re.findall(r"\{([a-z_]+)\}", self.feedback):
            close = difflib.get_close_matches(word, _FEEDBACK_FIELDS, n=1, cutoff=0.7)
            if close and close[0] != word:
                raise ValueError(f"feedback has {{{word}}}; did you mean {{{close[0]}}}?")
        if self.path is None and ("{hint}" in self.feedback) != (self.hint is not None):
            raise ValueError("feedback must contain {hint} exactly if hint is set")
        return self


class TaskConfig(Section):
    """Prompts to sample from, prompts held out for evaluation, and who judges."""

    name: str = Field(min_length=1)
    """Written into every trajectory."""
    train: PromptsConfig
    """Sampled from and trained on."""
    test: PromptsConfig
    """Held out: evaluated on; may share no question with ``train``."""
    grader: GraderChoice = "reference"
    """``reference``, ``math``, ``numeric``, ``choice``, ``reasoning_gym``,
    ``package.module:function``, or a mapping with ``name`` and options
    (``drift_ray/grader_config.py``); held as its canonical text."""
    environment: EnvironmentConfig = EnvironmentConfig()
