"""A few rows of every prompt set, and what the graders make of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from drift_ray.config import PromptsConfig, RunConfig
from drift_ray.doctor.findings import Finding, error, ok, warning
from drift_ray.errors import GradingError, TaskError
from drift_ray.grader_config import parse_grader
from drift_ray.tasks.environment import environment_kind
from drift_ray.tasks.graders import get_grader, needs_process
from drift_ray.tasks.grading_pool import GradingPool
from drift_ray.tasks.prompts import PromptSet
from drift_ray.tasks.sources import load_prompts
from drift_ray.types import Prompt, Verdict

NUM_ROWS = 8
_NONSENSE = "certainly not the answer"


def prompt_sets(config: RunConfig) -> dict[str, tuple[PromptsConfig, str, str]]:
    """Every prompt set by its setting, with its task's name and grader."""
    task = config.task
    return {
        "task.train": (task.train, task.name, task.grader),
        "task.test": (task.test, task.name, task.grader),
        **{
            f"evaluation.benchmarks.{name}": (each.prompts, name, config.benchmark_grader(name))
            for name, each in config.evaluation.benchmarks.items()
        },
    }


def check_environment(config: RunConfig) -> Iterator[Finding]:
    """Whether the environment, its hint and its class are there.

    Raises:
        ConfigError: They cannot be imported.
    """
    environment = config.task.environment
    environment_kind(environment)
    yield ok("environment", environment.path or f"unary feedback, {environment.max_turns} turns")


def check_rows(config: RunConfig) -> Iterator[Finding]:
    """The first rows of every prompt set, each graded: its gold is right and nonsense is not."""
    for setting, (prompts, task, grader) in prompt_sets(config).items():
        try:
            rows = first_rows(prompts, task=task, seed=config.seed)
        except TaskError as reason:
            yield error("dataset", f"{setting}: {reason.message}", reason.hint)
            continue
        yield ok("dataset", f"{setting}: {len(rows)} rows read, for example {rows[0].question!r}")
        yield from grader_findings(setting, grader, rows, deadline_s=_deadline_s(config))


def first_rows(config: PromptsConfig, *, task: str, seed: int) -> list[Prompt]:
    """A few prompts of a set; of a file no more than these rows are read.

    Raises:
        TaskError: As :func:`drift_ray.tasks.sources.load_prompts`.
    """
    found: PromptSet
    if config.num_prompts is None:
        try:
            few = config.model_copy(update={"num_prompts": NUM_ROWS})
            found = load_prompts(few, task=task, seed=seed)
        except TaskError:  # fewer rows than that, or a bad one: the whole set tells
            found = load_prompts(config, task=task, seed=seed)
    else:
        num = min(NUM_ROWS, config.num_prompts)
        few = config.model_copy(update={"num_prompts": num})
        found = load_prompts(few, task=task, seed=seed)
    return list(islice(found, NUM_ROWS))


def grader_findings(
    setting: str, grader: str, rows: list[Prompt], *, deadline_s: float
) -> Iterator[Finding]:
    """What a grader says of golds as answers, and of nonsense.

    Raises:
        ConfigError: The grader cannot be loaded.
    """
    name = parse_grader(grader).name
    check = f"grader {name}"
    # The golds of reasoning-gym name entries; what they have for an answer, only the scorer knows.
    answers = [_NONSENSE if name == "reasoning_gym" else row.gold for row in rows]
    pairs = [*zip(answers, (row.gold for row in rows), strict=True), (_NONSENSE, rows[0].gold)]
    *verdicts, nonsense = _grade(grader, pairs, deadline_s)
    for row, verdict in zip(rows, verdicts, strict=True):
        if isinstance(verdict, GradingError):
            yield error(
                check,
                f"{setting}, prompt {row.prompt_id!r}: {verdict.message}",
                "Mend the grader: such answers are never scored, and count as failures.",
            )
            return
        if name != "reasoning_gym" and not verdict.correct:
            yield warning(
                check,
                f"{setting}, prompt {row.prompt_id!r}: the gold {row.gold!r} is not accepted as an "
                "answer.",
                "Choose a grader that understands these golds (task.grader), or check the gold "
                "field (gold_field).",
            )
            return
    if isinstance(nonsense, Verdict) and nonsense.correct:
        yield warning(
            check,
            f"{setting}: {_NONSENSE!r} is accepted as an answer to gold {rows[0].gold!r}.",
            "Choose or mend the grader: nothing could be learnt from its verdicts.",
        )
        return
    accepted = "" if name == "reasoning_gym" else f"{len(rows)} golds are accepted, "
    yield ok(check, f"{setting}: {accepted}nonsense is not")


def _grade(
    grader: str, pairs: list[tuple[str, str]], deadline_s: float
) -> list[Verdict | GradingError]:
    if needs_process(grader):
        with GradingPool(grader, num_workers=1, deadline_s=deadline_s) as pool:
            return pool.grade_many(pairs)
    grade = get_grader(grader)
    return [grade(answer, gold) for answer, gold in pairs]


def _deadline_s(config: RunConfig) -> float:
    return config.replicas.grading_deadline_s
