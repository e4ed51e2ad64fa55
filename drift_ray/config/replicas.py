"""The engines that sample: where they run, how many, and what each is told."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Discriminator, Field, JsonValue, Tag, model_validator

from drift_ray.config.section import (
    LabelSelector,
    NonNegativeAmount,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
)

_DEVICE_COUNTS = ("tensor_parallel_size", "pipeline_parallel_size")


class VllmConfig(Section):
    """A vLLM engine inside every replica."""

    kind: Literal["vllm"] = "vllm"
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
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


class OpenAIConfig(Section):
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


class ReplicaRange(Section):
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


class ReplicaConfig(Section):
    """The engines: how many, how large, and what each is told."""

    num_replicas: ReplicaRange = ReplicaRange(max=2)
    """Engines that sample side by side; a number N means 1 to N."""
    num_cpus: NonNegativeAmount = 1.0
    """CPUs a replica; also its threads when it has no GPU."""
    num_gpus: NonNegativeAmount = 0.0
    """GPUs a replica, over all of its devices."""
    resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Custom resources a replica, for example ``{rollout: 1}``, which only some nodes have."""
    label_selector: LabelSelector = Field(default_factory=dict)
    """Labels of the nodes that replicas may run on, for example ``{drift-ray/rollout: enabled}``;
    all devices of an engine are on such nodes."""
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
