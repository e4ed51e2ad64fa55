"""What a run is made of: every input counts, others do not, and secrets stay secret."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from drift_ray.errors import DataError, DriftRayError, FingerprintError
from drift_ray.lineage import Lineage, claim_run, digest, redact, trace
from drift_ray.store import RunStore
from drift_ray.tasks.prompts import PromptSet
from drift_ray.types import Prompt
from tests.unit.scripted import prompts, run_config

TRAIN, TEST = prompts(["1", "2", "3"]), prompts(["4", "5"])
DIGESTS = {"reference", "rollouts", "weights", "model", "evaluation_base"}


def lineage(
    folder: Path,
    *overrides: str,
    train: Sequence[Prompt] = TRAIN,
    test: Sequence[Prompt] = TEST,
) -> Lineage:
    sets = (PromptSet.of(each, source="scripted") for each in (train, test))
    return trace(run_config(folder, *overrides), *sets)


def changed_fields(before: Lineage, after: Lineage) -> set[str]:
    fields = before.fingerprint.keys() | after.fingerprint.keys()
    return {f for f in fields if before.fingerprint.get(f) != after.fingerprint.get(f)}


def changed_digests(before: Lineage, after: Lineage) -> set[str]:
    return {name for name in DIGESTS if getattr(before, name) != getattr(after, name)}


def test_the_same_inputs_have_the_same_lineage(tmp_path: Path) -> None:
    one, two = lineage(tmp_path), lineage(tmp_path)
    assert one == two
    assert one.evaluation("x") == two.evaluation("x") != one.evaluation("y")
    assert len({getattr(one, name) for name in DIGESTS}) == len(DIGESTS)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("task.environment.max_turns=4", "task.environment.max_turns"),
        ("task.environment.feedback=No.", "task.environment.feedback"),
        ("task.environment.system_prompt=null", "task.environment.system_prompt"),
        ("task.grader=choice", "task.grader"),
        ("rollout.sampling.temperature=0.5", "rollout.sampling.temperature"),
        ("rollout.sampling.max_tokens=9", "rollout.sampling.max_tokens"),
        ("rollout.group_size=3", "rollout.group_size"),
        ("rollout.prompts_per_part=3", "rollout.prompts_per_part"),
        ("replicas.engine.arguments.max_model_len=99", "replicas.engine.arguments.max_model_len"),
        ("model.history=template", "model.history"),
        ("rollout.sampling.max_tokens_per_traj=99", "rollout.sampling.max_tokens_per_traj"),
        ("seed=1", "seed"),
    ],
)
def test_each_setting_that_shapes_the_samples_has_its_field(
    tmp_path: Path, override: str, field: str
) -> None:
    before, after = lineage(tmp_path), lineage(tmp_path, override)
    assert changed_fields(before, after) == {field}
    # Everything made of the rollouts changes with them.
    assert {"rollouts", "weights", "model"} <= changed_digests(before, after)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("config.json", "model.weights"),
        ("model.safetensors", "model.weights"),
        ("tokenizer.json", "model.tokenizer"),
        ("chat_template.jinja", "model.chat_template"),
    ],
)
def test_each_part_of_the_model_has_its_field(tmp_path: Path, name: str, field: str) -> None:
    before = lineage(tmp_path)
    (tmp_path / "m" / name).write_text("changed")
    after = lineage(tmp_path)
    assert changed_fields(before, after) == {field}
    assert {"reference", "rollouts", "weights", "model"} <= changed_digests(before, after)
    assert before.evaluation(before.reference) != after.evaluation(after.reference)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: dataclasses.replace(p, prompt_id="other"),
        lambda p: dataclasses.replace(p, question="other"),
        lambda p: dataclasses.replace(p, gold="other"),
    ],
)
def test_training_prompts_shape_the_samples(
    tmp_path: Path, change: Callable[[Prompt], Prompt]
) -> None:
    before = lineage(tmp_path)
    after = lineage(tmp_path, train=[change(TRAIN[0]), *TRAIN[1:]])
    assert changed_fields(before, after) == {"task.prompts"}
    assert changed_fields(before, lineage(tmp_path, train=TRAIN[::-1])) == {"task.prompts"}
    assert changed_digests(before, after) == {"rollouts", "weights", "model"}


def test_a_replica_on_a_gpu_is_another_sampler(tmp_path: Path) -> None:
    # Without a GPU the engine computes in float32 by default, with one in the model's own type.
    before, after = lineage(tmp_path), lineage(tmp_path, "replicas.num_gpus=1")
    assert changed_fields(before, after)


def test_more_gpus_a_replica_are_not(tmp_path: Path) -> None:
    one, two = lineage(tmp_path, "replicas.num_gpus=1"), lineage(tmp_path, "replicas.num_gpus=2")
    assert one == two


@pytest.mark.parametrize(
    ("override", "digests"),
    [
        ("weighting.beta=0.2", {"weights", "model"}),
        ("weighting.gamma=0.8", {"weights", "model"}),
        ("weighting.all_failed=drop", {"weights", "model"}),
        ("weighting.beta={kl: 0.5}", {"weights", "model"}),
        ("weighting.method=uniform", {"weights", "model"}),
        ("weighting.clip=4", {"weights", "model"}),
        ("training.learning_rate=1e-3", {"model"}),
        ("training.loss_turns=all", {"model"}),
        ("training.batch_size=8", {"model"}),
        ("training.held_out_frac=0.1", {"model"}),
        ("pipeline.overlap=true", {"model"}),
        ("evaluation.sampling.max_tokens=9", {"evaluation_base"}),
        ("evaluation={num_samples: 2, sampling: {temperature: 1}}", {"evaluation_base"}),
    ],
)
def test_a_setting_downstream_changes_what_is_made_with_it_and_nothing_else(
    tmp_path: Path, override: str, digests: set[str]
) -> None:
    before, after = lineage(tmp_path), lineage(tmp_path, override)
    assert before.fingerprint == after.fingerprint
    assert changed_digests(before, after) == digests


def test_held_out_prompts_change_the_evaluation_only(tmp_path: Path) -> None:
    before, after = lineage(tmp_path), lineage(tmp_path, test=TEST[:1])
    assert changed_digests(before, after) == {"evaluation_base"}
    assert before.fingerprint == after.fingerprint


@pytest.mark.parametrize(
    "override",
    [
        "training.num_workers=7",
        "training.num_cpus=3",
        "training.checkpoint_every_steps=1",
        "training.max_failures=0",
        "training.resources={trainer: 1}",
        "training.label_selector={drift-ray/training: enabled}",
        "replicas.label_selector={drift-ray/rollout: enabled}",
        # A batch is one step however it is cut up; to lower this after running out of memory is
        # what the training stage advises, and must not throw its checkpoints away.
        "training.micro_batch_tokens=64",
        "replicas.num_replicas=5",
        "replicas.num_cpus=2",
        "replicas.max_restarts=0",
        "run=elsewhere",
        # Whether weights are good enough to go on with.
        "weighting.gate.min_ess_frac=0.2",
    ],
)
def test_how_the_work_is_spread_changes_nothing(tmp_path: Path, override: str) -> None:
    assert lineage(tmp_path, override) == lineage(tmp_path)


def claim(folder: Path, *overrides: str, name: str = "run") -> RunStore:
    store = RunStore(str(folder / name))
    config = run_config(folder, *overrides)
    claim_run(store, config, lineage(folder, *overrides))
    store.write_bytes("rollouts/part-000000-0123abcd.parquet", b"")
    return store


def test_a_run_is_claimed_once_and_can_be_continued(tmp_path: Path) -> None:
    store = claim(tmp_path)
    first = store.read_json("run.json")
    assert first["fingerprint"] == lineage(tmp_path).fingerprint
    assert first["config"]["rollout"]["group_size"] == 2
    assert {"drift_ray", "pyarrow", "numpy"} <= first["versions"].keys()
    claim(tmp_path, "weighting.beta=0.25")
    second = store.read_json("run.json")
    assert second["fingerprint"] == first["fingerprint"]
    assert second["config"]["weighting"]["beta"] == 0.25


@pytest.mark.parametrize(
    ("overrides", "fields"),
    [
        (["seed=1"], ["seed"]),
        (["rollout.group_size=9"], ["rollout.group_size"]),
        (["task.grader=choice", "seed=1"], ["seed", "task.grader"]),
    ],
)
def test_other_settings_are_refused_by_name(
    tmp_path: Path, overrides: list[str], fields: list[str]
) -> None:
    store = claim(tmp_path)
    before = store.read_json("run.json")
    with pytest.raises(FingerprintError) as caught:
        claim(tmp_path, *overrides)
    assert all(f"{field} (there " in caught.value.message for field in fields)
    assert caught.value.message.count("(there ") == len(fields)
    assert store.url in caught.value.message
    assert store.read_json("run.json") == before


def test_settings_may_change_until_something_is_sampled(tmp_path: Path) -> None:
    store = claim(tmp_path)
    store.remove("rollouts")
    claim(tmp_path, "seed=1")
    assert store.read_json("run.json")["fingerprint"]["seed"] == "1"


def test_a_field_that_only_one_side_has_is_a_difference(tmp_path: Path) -> None:
    store = claim(tmp_path)
    recorded = store.read_json("run.json")
    store.write_json(
        "run.json", recorded | {"fingerprint": {**recorded["fingerprint"], "model.adapter": "x"}}
    )
    with pytest.raises(FingerprintError, match=r"model\.adapter"):
        claim(tmp_path)


@pytest.mark.parametrize("content", [{}, [], {"fingerprint": None}, {"fingerprint": []}, "x"])
def test_a_run_file_that_is_something_else_is_a_data_error(tmp_path: Path, content: Any) -> None:
    store = RunStore(str(tmp_path / "run"))
    store.write_json("run.json", content)
    with pytest.raises(DataError, match=r"run\.json"):
        claim(tmp_path)


def test_rollouts_whose_run_file_is_gone_are_not_adopted(tmp_path: Path) -> None:
    store = claim(tmp_path)
    store.write_bytes("rollouts/part-000000-0123abcd.parquet", b"made with seed 0")
    store.remove("run.json")
    with pytest.raises(DriftRayError, match="rollouts"):
        claim(tmp_path, "seed=1")


def test_secrets_are_not_written_down(tmp_path: Path) -> None:
    store = claim(
        tmp_path,
        "replicas.engine.arguments.hf_token=hush",
        "replicas.engine.arguments.nested={api_key: hush, list: [{password: hush}], max_tokens: 7}",
        "task.environment.feedback=see https://user:hush@host/path",
    )
    text = store.fs.cat_file(store.path("run.json")).decode()
    assert "hush" not in text
    config = json.loads(text)["config"]
    arguments = config["replicas"]["engine"]["arguments"]
    assert arguments["hf_token"] == "***"
    assert arguments["nested"]["max_tokens"] == 7
    assert config["task"]["environment"]["feedback"] == "see https://***@host/path"


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:hush@bucket/x",
        "https://hush@host/x",
        "sftp://me:hush@home@host/x",  # unescaped, yet what people type
        "one https://a:hush@b/ and two https://c:hush@d/",
    ],
)
def test_logins_in_urls_are_redacted(url: str) -> None:
    assert "hush" not in redact(url)
    assert "home" not in redact(url)


@pytest.mark.parametrize("text", ["user@host", "s3://bucket/a@b", "a@b://c", "https://host/@me"])
def test_what_is_no_login_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "key",
    [
        "hf_token",
        "TOKEN",
        "api_key",
        "api-key",
        "apikey",
        "secret",
        "aws_secret_access_key",
        "access_key",
        "password",
        "passwd",
        "credentials",
    ],
)
def test_settings_named_like_secrets_are_redacted(key: str) -> None:
    assert redact({key: "hush"}) == {key: "***"}
    assert redact([{"a": {key: {"deep": "hush"}}}]) == [{"a": {key: "***"}}]


@pytest.mark.parametrize("key", ["max_tokens", "tokenizer", "micro_batch_tokens", "key", "author"])
def test_harmless_settings_stay(key: str) -> None:
    assert redact({key: "x"}) == {key: "x"}


def test_unset_secrets_stay_unset() -> None:
    assert redact({"hf_token": None, "password": ""}) == {"hf_token": None, "password": ""}


def test_digests_do_not_depend_on_the_order_of_keys_but_on_that_of_values() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest("a", "b") != digest("b", "a")
    assert digest("a", "b") != digest("ab")
    assert digest({"a": 1}) == "6790f22346c80c56"  # not on machine, version or process either
