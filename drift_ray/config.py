"""All settings of a run, checked field by field before anything starts.

Every section is frozen and refuses unknown keys. Units stand in the names; bounds in the fields.
"""

from __future__ import annotations

import difflib
import math
import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    model_validator,
)

from drift_ray.grader_config import GraderChoice, ImportPath

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFraction = Annotated[float, Field(gt=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1, strict=True)]
FEEDBACK_FIELDS = ("answer", "reward", "turn", "max_turns", "turns_left", "actions_left", "hint")
FOLDER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

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
    history: Literal["append", "template"] = "append"
    """How a turn's prompt is made. ``append``: the tokens so far, as they were sampled, then the
    feedback. ``template``: all messages rendered anew, as a deployed chat would."""


class PromptsConfig(_Section):
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
    options: dict[str, JsonValue] = {}
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
    """What the policy hears after every wrong message. ``{answer}`` stands for its last answer,
    ``{reward}`` for the message's reward, ``{turn}`` for its 1-based number, ``{max_turns}``,
    ``{turns_left}`` and ``{actions_left}`` for budgets, ``{hint}`` for what ``hint`` returns."""
    hint: ImportPath | None = None
    """A function of your own, ``hint(answer, gold) -> str``, as ``package.module:function``: what
    it says of the last answer stands for ``{hint}``; nothing where a message held no answer."""
    path: ImportPath | None = None
    """An environment of your own, ``package.module:Class``, made for every trajectory as
    ``Class(prompt, config=EnvironmentConfig, grade=Grader)``; unary feedback when omitted."""
    options: dict[str, JsonValue] = {}
    """For an environment of your own, which reads them as ``config.options``."""

    @model_validator(mode="after")
    def _templates_fit(self) -> EnvironmentConfig:
        if "{question}" not in self.user_template:
            raise ValueError("user_template must contain {question}")
        if self.path is None and self.options:
            raise ValueError("options are for an environment of your own: set path")
        for word in re.findall(r"\{([a-z_]+)\}", self.feedback):
            close = difflib.get_close_matches(word, FEEDBACK_FIELDS, n=1, cutoff=0.7)
            if close and close[0] != word:
                raise ValueError(f"feedback has {{{word}}}; did you mean {{{close[0]}}}?")
        if self.path is None and ("{hint}" in self.feedback) != (self.hint is not None):
            raise ValueError("feedback must contain {hint} exactly if hint is set")
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
    """``reference``, ``math``, ``numeric``, ``choice``, ``reasoning_gym``,
    ``package.module:function``, or a mapping with ``name`` and options
    (``drift_ray/grader_config.py``); held as its canonical text."""
    environment: EnvironmentConfig = EnvironmentConfig()


class SamplingConfig(_Section):
    """How the policy samples one turn."""

    temperature: NonNegativeFloat = 1.0
    """0 is greedy."""
    top_p: PositiveFraction = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    max_tokens: PositiveInt = 512
    """New tokens a turn."""
    max_tokens_per_traj: PositiveInt | None = None
    """New tokens over all turns of a trajectory; no limit when omitted."""


class EvaluationSamplingConfig(SamplingConfig):
    """Greedy unless told otherwise."""

    temperature: NonNegativeFloat = 0.0
    max_tokens: PositiveInt = 1024


_DEVICE_COUNTS = ("tensor_parallel_size", "pipeline_parallel_size")


class VllmConfig(_Section):
    """A vLLM engine inside every replica."""

    kind: Literal["vllm"] = "vllm"
    arguments: dict[str, JsonValue] = {}
    """Handed to vLLM as they are, over the defaults of ``rollout/vllm_engine.py``."""

    @model_validator(mode="after")
    def _sizes_are_counts(self) -> VllmConfig:
        for name in _DEVICE_COUNTS:
            size = self.arguments.get(name, 1)
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {size!r}")
        return self

    @property
    def world_size(self) -> int:
        """Devices that one engine is spread over."""
        return math.prod(int(str(self.arguments.get(name, 1))) for name in _DEVICE_COUNTS)


class OpenAIConfig(_Section):
    """A fleet of OpenAI-compatible servers that host the reference policy; replicas are clients.

    Prompts go to ``/v1/completions`` as token ids. vLLM servers return the sampled ids; of other
    servers' texts the ids are made anew, which need not be the ones that were sampled.
    """

    kind: Literal["openai"]
    urls: list[str] = Field(min_length=1)
    """Base URLs, for example ``http://host:8000/v1``; requests take turns over them."""
    model: str = Field(min_length=1)
    """The model's name at the servers."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable of the replicas that holds the key; may be unset for open servers."""
    max_model_len: PositiveInt
    """Context window of the servers, in tokens."""
    max_in_flight: PositiveInt = 256
    """Requests of a replica that are under way at once."""
    max_attempts: PositiveInt = 6
    """How often a request is sent before its trajectory's attempt fails; waits grow in between."""
    timeout_s: PositiveFloat = 600.0
    """Time one attempt at a request may take."""


def _kind_of(raw: object) -> object:
    """``vllm`` unless the section says otherwise."""
    return raw.get("kind", "vllm") if isinstance(raw, dict) else getattr(raw, "kind", None)


EngineConfig = Annotated[
    Annotated[VllmConfig, Tag("vllm")] | Annotated[OpenAIConfig, Tag("openai")],
    Discriminator(
        _kind_of,
        custom_error_type="engine_kind",
        custom_error_message="Engine kinds are vllm and openai",
    ),
]


class ReplicaRange(_Section):
    """A number of replicas that follows the resources of the cluster."""

    min: PositiveInt = 1
    """With fewer for ``max_wait_s``, the stage gives up; what is committed stays."""
    max: PositiveInt
    """As many are asked for; those that find no room yet join when there is."""

    @model_validator(mode="before")
    @classmethod
    def _number_is_the_most(cls, raw: object) -> object:
        return {"max": raw} if isinstance(raw, int) else raw

    @model_validator(mode="after")
    def _is_a_range(self) -> ReplicaRange:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is greater than max {self.max}")
        return self


class ReplicaConfig(_Section):
    """The engines: how many, how large, and what each is told."""

    num_replicas: ReplicaRange = ReplicaRange(max=2)
    """Engines that sample side by side; a number N means 1 to N."""
    num_cpus: NonNegativeFloat = 1.0
    """CPUs a replica; also its threads when it has no GPU."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs a replica, over all of its devices."""
    resources: dict[str, PositiveFloat] = {}
    """Custom resources a replica, for example ``{rollout: 1}``, which only some nodes have."""
    max_wait_s: PositiveFloat = 3600.0
    """Time that fewer than the least number of replicas may have found room."""
    start_deadline_s: PositiveFloat = 1800.0
    """Time a replica that has found room may take to load its engine."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """Deaths of a replica and its successors in a row, with no finished group in between, before
    the stage gives up."""
    max_group_deaths: PositiveInt = 5
    """Replicas that may die while they play a group, before its trajectories count as failed."""
    trajectories_in_flight: PositiveInt | None = None
    """Trajectories a replica plays at once, rounded up to whole groups; as many as keep its engine
    full when omitted."""
    environment_threads: PositiveInt = 64
    """Environments of a replica that react at the same time."""
    environment_deadline_s: PositiveFloat = 60.0
    """Time an environment has to start or to react to one message, grading included."""
    grading_processes: PositiveInt = 2
    """Processes of a replica for graders that may hang or crash: ``math`` and one's own."""
    grading_deadline_s: PositiveFloat = 10.0
    """Time such a grader has for one answer."""
    stall_deadline_s: PositiveFloat = 900.0
    """Time one step of an engine may take before its replica is replaced."""
    drain_deadline_s: NonNegativeFloat = 120.0
    """Time a replica that has to leave may go on with what it plays; the rest is handed back."""
    engine: EngineConfig = VllmConfig()

    @model_validator(mode="after")
    def _devices_fit_the_engine(self) -> ReplicaConfig:
        size = self.engine.world_size if isinstance(self.engine, VllmConfig) else 1
        if size > 1 and self.num_gpus not in (0, size):
            raise ValueError(f"an engine over {size} devices needs num_gpus {size}")
        return self


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


class BetaTarget(_Section):
    """β by what it does: the β at which the weights are spread as wanted."""

    ess_frac: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Effective sample size over group size, (Σw)²/(GΣw²)."""
    kl: PositiveFloat | None = None
    """KL(π*‖π_ref) in nats; below the logarithm of the group size."""
    per: Literal["run", "group"] = "run"
    """One β, at which the mean over groups is met, or a β for every group."""

    @model_validator(mode="after")
    def _one_target(self) -> BetaTarget:
        if (self.ess_frac is None) == (self.kl is None):
            raise ValueError("name one of ess_frac and kl")
        return self

    @property
    def wanted(self) -> tuple[Literal["ess_frac", "kl"], float]:
        """Which of the two, and its value."""
        if self.ess_frac is not None:
            return "ess_frac", self.ess_frac
        return "kl", self.kl or 0.0


def _beta_kind(value: Any) -> str:
    return "target" if isinstance(value, dict | BetaTarget) else "number"


class GateConfig(_Section):
    """Conditions for going on to the training; those left out are not asked for."""

    min_ess_frac: Fraction | None = None
    """Mean effective sample size over group size."""
    min_effective_trajectories: PositiveFloat | None = None
    """Effective sample size of the whole run."""
    max_largest_share: Fraction | None = None
    """Mean over groups of the largest trajectory's share of the group's weight."""
    max_all_failed_frac: Fraction | None = None
    """Share of the groups in which nothing succeeded."""
    max_truncated_frac: Fraction | None = None
    """Share of the trajectories with a turn that was cut off."""
    max_format_failed_frac: Fraction | None = None
    """Share of the trajectories with a turn that held no answer."""


class WeightingConfig(_Section):
    """Returns and importance weights: w = exp(R/β) / mean exp(R/β) over the group."""

    method: str = "drift"
    """``drift``, ``uniform``, ``success_only``, ``single_turn`` (turn 1 alone counts),
    ``group_advantage`` (signed), or a function of your own as ``package.module:function``."""
    name: str = Field(
        default_factory=lambda data: data.get("method", "drift").rpartition(":")[2],
        pattern=FOLDER_NAME,
        validate_default=True,
    )
    """Folder under ``weights/``; the method's name when omitted."""
    verdicts: Annotated[str, Field(pattern=FOLDER_NAME)] | None = None
    """Folder under ``verdicts/``: go by what ``drift-ray rescore`` found, not by the verdicts that
    were recorded when the trajectories were sampled."""
    gamma: Fraction = 0.9
    """Discount per turn."""
    beta: Annotated[
        Annotated[PositiveFloat, Tag("number")] | Annotated[BetaTarget, Tag("target")],
        Discriminator(_beta_kind),
    ] = 0.1
    """Temperature of the KL-regularised optimum; smaller follows the return more closely. A number,
    or what it should amount to: ``{ess_frac: 0.4}`` or ``{kl: 0.5}``."""
    repetition_penalty: NonNegativeFloat = 0.5
    """λ of the penalty λ·(1 - distinct/total) on repeated answers."""
    all_failed: Literal["keep", "drop", "scale"] = "keep"
    """Groups without any success: keep their weights, give them importance weight 0, or multiply
    them by ``all_failed_scale``."""
    all_failed_scale: Fraction = 0.1
    """For ``all_failed: scale``."""
    clip: PositiveFloat | None = None
    """Greatest importance weight; larger ones are cut down to it."""
    min_importance_weight: NonNegativeFloat = 0.0
    """Smaller importance weights become 0, which spares the training those trajectories."""
    gate: GateConfig = GateConfig()

    @model_validator(mode="after")
    def _limits_leave_something(self) -> WeightingConfig:
        if self.clip is not None and self.clip < self.min_importance_weight:
            raise ValueError("clip is below min_importance_weight: no weight would be left")
        return self


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
    max_context_tokens: PositiveInt | None = None
    """Tokens kept before a trajectory's first loss token; older ones are left out, answers never.
    All are kept when omitted."""
    held_out_frac: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the prompts that are not trained on; a prompt's id and the run's seed decide."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; parameters and optimizer state stay float32."""
    checkpoint_every_steps: PositiveInt = 100
    """Besides the last step, which is always saved."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Worker failures survived by restarting from the last checkpoint."""


class BenchmarkConfig(_Section):
    """Further held-out prompts that both models are evaluated on."""

    prompts: PromptsConfig
    """May share no question with ``task.train``."""
    grader: GraderChoice | None = None
    """Who judges; as ``task.grader`` when omitted."""


BenchmarkName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class EvaluationConfig(_Section):
    """Success within k turns on held-out prompts."""

    num_samples: PositiveInt = 1
    """Trajectories a prompt; more than one need a temperature."""
    prompts_per_part: PositiveInt = 128
    """Prompts in one Parquet part."""
    sampling: EvaluationSamplingConfig = EvaluationSamplingConfig()
    benchmarks: dict[BenchmarkName, BenchmarkConfig] = {}
    """Beside ``task.test``, by name: each has its folder below ``evaluation/<model>``."""

    @model_validator(mode="after")
    def _samples_differ(self) -> EvaluationConfig:
        if self.num_samples > 1 and self.sampling.temperature == 0.0:
            raise ValueError(
                f"num_samples {self.num_samples} at temperature 0 is one trajectory "
                f"{self.num_samples} times: set sampling.temperature"
            )
        return self

    @model_validator(mode="after")
    def _folders_are_free(self) -> EvaluationConfig:
        if "failures" in self.benchmarks:
            raise ValueError("a benchmark cannot be named failures: that folder is taken")
        return self


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

    @model_validator(mode="after")
    def _history_fits_the_loss(self) -> RunConfig:
        if self.model.history == "template" and self.training.loss_turns == "all":
            # A rendered history differs from turn to turn: no one sequence holds all turns.
            raise ValueError("training.loss_turns 'all' needs model.history 'append'")
        return self

    @model_validator(mode="after")
    def _benchmarks_have_names_of_their_own(self) -> RunConfig:
        if self.task.name in self.evaluation.benchmarks:
            raise ValueError(
                f"evaluation.benchmarks.{self.task.name} has the name of the task: choose another"
            )
        return self

    def benchmark_grader(self, name: str) -> str:
        """The grader of one of ``evaluation.benchmarks``."""
        return self.evaluation.benchmarks[name].grader or self.task.grader
