"""Run directories as the stages leave them, made without Ray and without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drift_ray.config import RunConfig
from drift_ray.evaluation.comparison import compare
from drift_ray.evaluation.metrics import evaluation_metrics
from drift_ray.evaluation.results import (
    COMPARISON_FILE,
    REFERENCE,
    TRAINED,
    evaluation_folder,
    metrics_name,
    read_outcomes,
)
from drift_ray.lineage import claim_run, trace
from drift_ray.nano.tokenizer import build_tokenizer
from drift_ray.schema import CONTENT_KEY, FAILURES_KEY, SOURCE_KEY, failure_table, trajectory_table
from drift_ray.store import RunStore
from drift_ray.tasks.sources import load_prompts
from drift_ray.types import (
    EndReason,
    Failure,
    FailureCause,
    Message,
    StopReason,
    Trajectory,
    Turn,
)
from drift_ray.weighting.part import return_table, weight_table
from drift_ray.weighting.passes import Outcome
from drift_ray.weighting.report import outcome_summary
from drift_ray.weighting.weigh import weigh_groups
from tests.unit.scripted import run_config

PREFILL, CLOSING, FEEDBACK = "<answer>", "</answer>", "Incorrect. Please think again."
PART = "rollouts/part-000000-0.parquet"
_TOKENIZER: list[Any] = []


def tokenizer() -> Any:
    """The nano tokenizer, made once."""
    if not _TOKENIZER:
        _TOKENIZER.append(build_tokenizer())
    return _TOKENIZER[0]


def played(
    prompt_id: str, index: int, answers: Sequence[str], *, question: str = "", gold: str = "1"
) -> Trajectory:
    """A trajectory with these answers, one a turn, in tokens of the nano tokenizer."""
    end = tokenizer().convert_tokens_to_ids("<|end|>")
    token_ids, logprobs = [[0, 0]], [np.full(2, np.nan)]
    turns: list[Turn] = []
    messages = [Message(role="user", content=question or f"{prompt_id}?")]
    start = 2
    for number, answer in enumerate(answers):
        sampled = [*tokenizer().encode(answer + CLOSING, add_special_tokens=False), end]
        text = PREFILL + tokenizer().decode(sampled, skip_special_tokens=True)
        messages.append(Message(role="assistant", content=text))
        if answer != gold and number < len(answers) - 1:
            messages.append(Message(role="user", content=FEEDBACK))
        turns.append(
            Turn(
                turn_index=number,
                text=text,
                canonical_text=text,
                answers=(answer,),
                answer_norms=(answer,),
                reward=float(answer == gold),
                format_ok=True,
                stop_reason=StopReason.STOP,
                prompt_start=0,
                token_start=start,
                token_end=start + len(sampled),
            )
        )
        token_ids.append(sampled)
        logprobs.append(-np.arange(len(sampled)) / 4)
        start += len(sampled)
    solved = bool(turns) and turns[-1].reward > 0
    return Trajectory(
        prompt_id=prompt_id,
        trajectory_index=index,
        task="addition",
        question=question or f"{prompt_id}?",
        gold=gold,
        messages=tuple(messages),
        turns=tuple(turns),
        token_ids=np.concatenate(token_ids).astype(np.int32),
        logprobs=np.concatenate(logprobs).astype(np.float32),
        first_success_turn=len(turns) if solved else None,
        format_penalty=0.0,
        end_reason=EndReason.SUCCESS if solved else EndReason.MAX_TURNS,
        seed=0,
    )


def group(prompt_id: str, size: int = 4, **more: str) -> list[Trajectory]:
    """Trajectories of one prompt: solved at turn 1, at turn 2, …, and never."""
    lists = [[*map(str, range(2, 2 + k % 3)), "1"] for k in range(size - 1)]
    return [played(prompt_id, k, a, **more) for k, a in enumerate([*lists, ["2", "2", "2"]])]


def claimed(folder: Path, *overrides: str) -> tuple[RunStore, RunConfig]:
    """A run directory that holds its configuration only."""
    config = run_config(
        folder, "model.path=builtin:nano", "task.environment.max_turns=3", *overrides
    )
    sets = (config.task.train, config.task.test)
    train, test = (load_prompts(each, task="addition", seed=0) for each in sets)
    store = RunStore(config.run)
    claim_run(store, config, trace(config, train, test))
    return store, config


def weigh(store: RunStore, config: RunConfig, part: str = PART) -> None:
    """Weigh a part of whole groups, as the stage does, and write its summary."""
    weighting = config.weighting
    columns = store.read_table(part, trajectory_table([]).schema)
    returns = return_table(columns, weighting)
    weighed = weigh_groups(returns, weighting, run_beta=None)
    metadata = {SOURCE_KEY: columns.schema.metadata[CONTENT_KEY]}
    table = weight_table(returns, weighed.importance_weight, metadata)
    folder = f"weights/{weighting.name}"
    store.write_table(f"{folder}/{part.rsplit('/', 1)[1]}", table)
    outcome = Outcome(groups=[weighed.groups], turns=[weighed.turns])
    summary = {"digest": "w", "name": weighting.name, **outcome_summary(outcome, weighting)}
    store.write_json(f"{folder}/summary.json", summary)


def evaluate(
    store: RunStore, model: str, rows: Sequence[Trajectory], failed: Sequence[Failure] = ()
) -> None:
    """Commit an evaluation on the run's own task."""
    folder = evaluation_folder(model)
    part, table = f"{folder}/part-000000-0.parquet", trajectory_table(rows)
    if failed:
        file = f"{folder}/failures/part-000000-0.parquet"
        store.write_table(file, failure_table(failed))
        table = table.replace_schema_metadata(
            {**table.schema.metadata, FAILURES_KEY: file.encode()}
        )
    store.write_table(part, table)
    metrics = evaluation_metrics(
        table,
        max_turns=3,
        num_expected=len(rows) + len(failed),
        failure_causes=[each.cause for each in failed],
    )
    store.write_json(metrics_name(folder), {"policy": model, "settings": {}, **metrics})


def finished_run(folder: Path, groups: Sequence[Sequence[Trajectory]], *overrides: str) -> RunStore:
    """A run in which every stage has left something."""
    store, config = claimed(folder, *overrides)
    rows = [trajectory for each in groups for trajectory in each]
    store.write_table(PART, trajectory_table(rows))
    weigh(store, config)
    failure = Failure(
        prompt_id=groups[0][0].prompt_id,
        trajectory_index=0,
        turn_index=1,
        cause=FailureCause.GRADER,
        message="it <b>raised</b>",
        trace="Traceback…",
    )
    before = [each[-1] for each in groups]
    evaluate(store, REFERENCE, before, [failure])
    after = [
        played(each.prompt_id, each.trajectory_index, ["1"], question=each.question, gold=each.gold)
        for each in before
    ]
    evaluate(store, TRAINED, after)
    outcomes = [read_outcomes(store, evaluation_folder(m), name=m) for m in (REFERENCE, TRAINED)]
    store.write_json(COMPARISON_FILE, {"comparisons": {"addition": compare(*outcomes)}})
    parts = [_part_line(number) for number in range(3)]
    end = {
        "stage": "rollout",
        "event": "end",
        "num_trajectories": 12,
        "num_sampled_tokens": 150,
        "duration_s": 60.0,
    }
    store.append_metrics([*parts, end, *(_step_line(step) for step in range(8))])
    return store


def _part_line(number: int) -> dict[str, Any]:
    return {
        "stage": "rollout",
        "time_s": 100.0 + number,
        "name": f"rollouts/part-{number}.parquet",
        "num_trajectories": 4,
        "num_failures": 0,
        "num_turns": 6,
        "num_sampled_tokens": 50,
        "num_solved": 3,
    }


def _step_line(step: int) -> dict[str, Any]:
    return {
        "stage": "training",
        "digest": "m",
        "step": step,
        "num_steps": 8,
        "loss": 1.0 / (step + 1),
        "nll": 1.0,
        "kl_ref": -0.01 * step,
        "grad_norm": 1.0,
        "num_samples": 4,
        "ess": 2.0,
        "num_tokens": 100,
        "step_s": 0.5,
        "mfu": None,
        "peak_memory_gib": 0.5,
        "held_out_loss": None,
    }
