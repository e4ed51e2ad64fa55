"""One YAML file plus dotted overrides, checked field by field before anything starts.

Every section is frozen and refuses unknown keys. Units stand in the names; bounds in the fields.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from drift_ray.errors import ConfigError
from drift_ray.grader_config import GraderChoice

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFraction = Annotated[float, Field(gt=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1, strict=True)]

_ANSWER = "put your final answer between <answer> and </answer>. "
_RETRY = (
    "If you are told that it is incorrect, look for the mistake and give a different answer in the "
    "same form."
)
_SYSTEM_PROMPTS = {
    True: f"Solve the problem. Reason between <think> and </think>, then {_ANSWER}{_RETRY}",
    False: f"Solve the problem and {_ANSWER}{_RETRY}",
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Section):
    """The frozen reference policy π_ref, which is also where training starts."""

    path: str = Field(min_length=1)
    """A Hugging Face folder, a hub id, or ``builtin:nano``."""
    trust_remote_code: bool = False
    """Run Python code that the model folder brings along."""


class PromptsConfig(_Section):
    """Where problems come from."""

    source: Literal["addition", "jsonl"]
    """Two-digit sums made up on the spot, or a file of JSON objects, one a line."""
    path: str | None = None
    """For ``jsonl``: any fsspec URL."""
    split: str = "train"
    """For generators: which of their disjoint splits."""
    num_prompts: PositiveInt | None = None
    """Take this many; all when omitted."""
    id_field: str | None = None
    """Row field that names the prompt; derived from the question when omitted."""
    question_field: str = "question"
    """Row field that is asked."""
    gold_field: str = "answer"
    """Row field that counts as correct."""

    @model_validator(mode="after")
    def _source_has_what_it_needs(self) -> PromptsConfig:
        if self.source == "jsonl" and not self.path:
            raise ValueError("source 'jsonl' needs a path")
        if self.source == "addition" and self.split not in ("train", "test"):
            raise ValueError(f"source 'addition' has splits train and test, not {self.split!r}")
        return self


class EnvironmentConfig(_Section):
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
    """What the policy hears after every wrong message."""

    @model_validator(mode="after")
    def _template_has_the_question(self) -> EnvironmentConfig:
        if "{question}" not in self.user_template:
            raise ValueError("user_template must contain {question}")
        return self


class TaskConfig(_Section):
    """Prompts to sample from, prompts held out for evaluation, and who judges."""

    name: str = Field(min_length=1)
    """Written into every trajectory."""
    train: PromptsConfig
    """Sampled from and trained on."""
    test: PromptsConfig
    """Held out: evaluated on; may share no question with ``train``."""
    grader: GraderChoice = "reference"
    """``reference``, ``math``, ``numeric``, ``choice``, ``package.module:function``, or a mapping
    with ``name`` and options (``drift_ray/grader_config.py``); held as its canonical text."""
    environment: EnvironmentConfig = EnvironmentConfig()


class SamplingConfig(_Section):
    """How the policy samples one turn."""

    temperature: NonNegativeFloat = 1.0
    """0 is greedy."""
    top_p: PositiveFraction = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    max_tokens: PositiveInt = 512
    """New tokens a turn."""


class EvaluationSamplingConfig(SamplingConfig):
    """Greedy unless told otherwise."""

    temperature: NonNegativeFloat = 0.0
    max_tokens: PositiveInt = 1024


class ReplicaConfig(_Section):
    """The vLLM engines: how many, how large, and what vLLM is told."""

    num_replicas: PositiveInt = 2
    """vLLM engines that sample side by side."""
    num_cpus: NonNegativeFloat = 1.0
    """CPUs a replica; also its threads when it has no GPU."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs a replica."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """Replacements of dead replicas before the stage gives up."""
    parts_in_flight: PositiveInt = 2
    """Parts a replica plays at once, so that its engine never drains between two."""
    environment_threads: PositiveInt = 64
    """Environments of a replica that react at the same time."""
    environment_deadline_s: PositiveFloat = 60.0
    """Time an environment has to start or to react to one message, grading included."""
    engine: dict[str, JsonValue] = {}
    """Engine arguments handed to vLLM as they are, over the defaults of ``rollout/engine.py``."""


class RolloutConfig(_Section):
    """How many trajectories are drawn from π_ref, and how."""

    group_size: PositiveInt = 16
    """Trajectories a prompt."""
    prompts_per_part: PositiveInt = 32
    """Groups in one Parquet part: the unit of work, of commit and of resume."""
    sampling: SamplingConfig = SamplingConfig()
    max_attempts: PositiveInt = 2
    """How often a trajectory is tried before it counts as failed."""
    max_failed_frac: Fraction = 0.05
    """Share of failed trajectories past which the stage stops."""


class WeightingConfig(_Section):
    """Returns and importance weights: w = exp(R/β) / mean exp(R/β) over the group."""

    name: str = Field(default="drift", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Folder under ``weights/``."""
    gamma: Fraction = 0.9
    """Discount per turn."""
    beta: PositiveFloat = 0.1
    """Temperature of the KL-regularised optimum; smaller follows the return more closely."""
    repetition_penalty: NonNegativeFloat = 0.5
    """λ of the penalty λ·(1 - distinct/total) on repeated answers."""
    all_failed: Literal["keep", "drop"] = "keep"
    """Groups without any success: keep their weights, or give them importance weight 0."""


class TrainingConfig(_Section):
    """Importance-weighted supervised fine-tuning."""

    num_workers: PositiveInt = 2
    """Processes that share every step."""
    num_cpus: PositiveFloat = 1.0
    """CPUs a worker; also its threads when it has no GPU."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs a worker."""
    num_epochs: PositiveInt = 1
    """Passes over the trajectories."""
    batch_size: PositiveInt = 64
    """Trajectories a step over all workers."""
    micro_batch_tokens: PositiveInt = 8192
    """Padded tokens a worker puts through the model at once."""
    learning_rate: PositiveFloat = 5e-6
    """Of AdamW, after warm-up."""
    warmup_frac: Fraction = 0.1
    """Share of the steps with linear warm-up; constant afterwards."""
    weight_decay: NonNegativeFloat = 0.1
    """Of matrices; biases and norms do not decay."""
    max_grad_norm: PositiveFloat = 1.0
    """The gradient of a step is scaled down to this L2 norm."""
    loss_turns: Literal["last", "all"] = "last"
    """Assistant turns that carry loss; ``all`` is the closed form, ``last`` the reference's."""
    token_reduction: Literal["mean", "sum"] = "mean"
    """NLL of a trajectory: mean or sum over its loss tokens."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters and optimizer state stay float32."""
    checkpoint_every_steps: PositiveInt = 100
    """Besides the last step, which is always saved."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Worker failures survived by restarting from the last checkpoint."""


class EvaluationConfig(_Section):
    """Success within k turns on held-out prompts."""

    num_samples: PositiveInt = 1
    """Trajectories a prompt."""
    prompts_per_part: PositiveInt = 128
    """Prompts in one Parquet part."""
    sampling: EvaluationSamplingConfig = EvaluationSamplingConfig()


class RunConfig(_Section):
    """Everything one run needs."""

    run: str = Field(min_length=1)
    """URL of the run directory: a path, or anything fsspec knows (s3://, gs://, …)."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of prompts, samples and the order of training."""
    model: ModelConfig
    task: TaskConfig
    replicas: ReplicaConfig = ReplicaConfig()
    rollout: RolloutConfig = RolloutConfig()
    weighting: WeightingConfig = WeightingConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply ``a.b.c=value`` overrides (values are YAML), and validate.

    Raises:
        ConfigError: The file is missing or no YAML mapping, an override has no ``=``, or a key or
            value is wrong; names every offending key, its value and, if close, what was meant.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"No configuration file at {path}.", "Check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read {path}: {error}.") from None
    raw = _read_yaml(text, where=str(path))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {type(raw).__name__}, not a mapping of settings.")
    for override in overrides:
        _apply_override(raw, override)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        where = f"{path} with the overrides given" if overrides else path
        raise ConfigError(f"{where} has wrong settings:\n{_explain(error)}") from None


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"Override {override!r} is not of the form section.key=value.")
    *sections, last = key.strip().split(".")
    node = raw
    for section in sections:
        child = {} if node.get(section) is None else node[section]
        if not isinstance(child, dict):
            raise ConfigError(f"Override {override!r}: {section!r} is a value, not a section.")
        # A copy: with YAML aliases two sections are one object.
        node[section] = node = dict(child)
    node[last] = _read_yaml(text, where=f"Override {override!r}: the value")


def _read_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    # PyYAML's constructors let slip what int(), float() and datetime raise, as for 2020-13-45.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{where} is not YAML: {error}") from None


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(step) for step in item["loc"]) or "(top level)"
        if item["type"] == "extra_forbidden":
            known = _known_keys(item["loc"][:-1])
            close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
            meant = f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."
            lines.append(f"  {where}: unknown key.{meant}")
        elif item["type"] == "missing":
            lines.append(f"  {where}: required, but missing.")
        else:
            lines.append(f"  {where}: {item['msg']} (got {item['input']!r})")
    return "\n".join(lines)


def _known_keys(loc: tuple[int | str, ...]) -> list[str]:
    section: type[BaseModel] = RunConfig
    for step in loc:
        annotation = section.model_fields[str(step)].annotation
        candidates = [annotation, *get_args(annotation)]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return sorted(section.model_fields)
