"""What the driver and its replicas say to each other: small and picklable."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from drift_ray.config import EnvironmentConfig, SamplingConfig
from drift_ray.types import Failure, Prompt, Trajectory

GroupKey = tuple[str, int]
"""Names a group: its part, and the position of its prompt in the part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyRef:
    """Which weights sample: the reference policy, or a model folder of the run."""

    digest: str
    """Identifies the weights."""
    folder: str | None = None
    """Name of the folder in the run directory; None is the configured reference policy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Play:
    """How all groups of a stage are played."""

    group_size: int
    """Trajectories a prompt."""
    policy: PolicyRef
    environment: EnvironmentConfig
    grader: str
    sampling: SamplingConfig
    max_attempts: int
    """How often a trajectory is tried before it counts as failed."""
    seed: int
    """The run's seed."""
    first_index: int = 0
    """Trajectory index at which groups begin: above 0, they go on with groups of other parts."""
    subrun: str = ""
    """Folder of the run in which the parts are committed, a run of its own; empty: the run."""

    @property
    def indices(self) -> range:
        """Trajectory indices of a group."""
        return range(self.first_index, self.first_index + self.group_size)

    def within(self, folder: str) -> Play:
        """The same, of a run that lies in a folder of the run directory."""
        policy = self.policy
        if policy.folder is not None:
            policy = replace(policy, folder=f"{folder}/{policy.folder}")
        subrun = f"{folder}/{self.subrun}" if self.subrun else folder
        return replace(self, policy=policy, subrun=subrun)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """The chunk of prompts that becomes one file."""

    name: str
    """Where it is committed, relative to the run directory: a function of the work alone."""
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """One prompt to play: the unit of scheduling."""

    key: GroupKey
    prompt: Prompt


@dataclass(slots=True)
class GroupOutcome:
    """All that became of the trajectories of one prompt."""

    trajectories: list[Trajectory] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What a replica has done since it started; sums only, so replicas add up."""

    num_trajectories: int = 0
    num_failures: int = 0
    num_solved: int = 0
    num_sampled_tokens: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            num_trajectories=self.num_trajectories + other.num_trajectories,
            num_failures=self.num_failures + other.num_failures,
            num_solved=self.num_solved + other.num_solved,
            num_sampled_tokens=self.num_sampled_tokens + other.num_sampled_tokens,
        )

    def __sub__(self, other: Counts) -> Counts:
        return Counts(
            num_trajectories=self.num_trajectories - other.num_trajectories,
            num_failures=self.num_failures - other.num_failures,
            num_solved=self.num_solved - other.num_solved,
            num_sampled_tokens=self.num_sampled_tokens - other.num_sampled_tokens,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """A replica's side of an exchange with the driver."""

    finished: tuple[GroupKey, ...] = ()
    """Groups finished since the last exchange; the replica keeps them until told to forget."""
    num_wanted: int
    """Trajectories it could take on now."""
    num_in_flight: int = 0
    """Trajectories under way."""
    counts: Counts = Counts()
    cpu_s: float = 0.0
    """CPU seconds of the replica's process since its engine was up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartReport:
    """What came of a part; counts and sums only, so reports add up."""

    name: str
    num_trajectories: int
    num_failures: int
    num_turns: int
    num_sampled_tokens: int
    num_solved: int
