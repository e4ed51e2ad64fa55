"""Configuration: what is shipped loads, what is wrong is named, nothing else can happen."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from drift_ray.config import EnvironmentConfig, OpenAIConfig, ReplicaRange, RunConfig, VllmConfig
from drift_ray.config_file import builtin_config, builtin_configs, load_config
from drift_ray.errors import ConfigError
from tests.unit.scripted import run_config, write_config

SHIPPED = sorted((Path(__file__).parents[2] / "jobs" / "configs").glob("*.yaml"))


def refused(folder: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        run_config(folder, *overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_load(path: Path) -> None:
    config = load_config(path)
    assert load_config(path, ["weighting.beta=0.5"]).weighting.beta == 0.5
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


def test_something_is_shipped() -> None:
    assert "demo" in {path.stem for path in SHIPPED}


def test_what_is_shipped_goes_by_a_name_of_its_own() -> None:
    assert builtin_configs() == [path.stem for path in SHIPPED]
    assert load_config("builtin:demo") == load_config(SHIPPED[0])
    assert builtin_config("demo") == SHIPPED[0].read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=r"'\.\./demo'.*\n.*demo, math"):
        load_config("builtin:../demo")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("weighting.bata=1", ["weighting.bata", "unknown key", "Did you mean 'beta'?"]),
        ("rolout.group_size=4", ["rolout", "unknown key", "'rollout'"]),
        ("task.environment.max_turn=4", ["task.environment.max_turn", "'max_turns'"]),
        ("task.train.splitt=test", ["task.train.splitt", "'split'"]),
        ("beta=1", ["beta: unknown key", "Did you mean 'weighting.beta'?"]),
        (
            "rollout.max_tokens=3",
            ["'rollout.sampling.max_tokens' or 'evaluation.sampling.max_tokens'?"],
        ),
        ("weighting.all_failed=dorp", ["got 'dorp'", "Did you mean 'drop'?"]),
        ("evaluation.sampling.zzz=1", ["evaluation.sampling.zzz", "Known:", "temperature"]),
        ("a..b=1", ["a", "unknown key"]),
        ("rollout.group_size=0", ["rollout.group_size", "greater than or equal to 1", "got 0"]),
        ("rollout.group_size=many", ["rollout.group_size", "integer", "'many'"]),
        ("weighting.beta=0", ["weighting.beta", "greater than 0"]),
        ("weighting.beta=.inf", ["weighting.beta", "finite"]),
        ("weighting.beta={ess_fra: 0.4}", ["weighting.beta", "Did you mean 'ess_frac'?"]),
        ("weighting.beta={ess_frac: 0.4, kl: 1}", ["weighting.beta", "one of ess_frac and kl"]),
        ("weighting.beta={}", ["weighting.beta", "one of ess_frac and kl"]),
        ("weighting.beta={ess_frac: 1}", ["weighting.beta", "ess_frac", "less than 1"]),
        ("weighting.beta={kl: 0}", ["weighting.beta", "kl", "greater than 0"]),
        ("weighting.beta=small", ["weighting.beta", "number", "'small'"]),
        ("weighting.clip=0", ["weighting.clip", "greater than 0"]),
        ("training.early_stopping={}", ["early_stopping needs held_out_frac"]),
        ("training.early_stopping={patience: 0}", ["training.early_stopping", "patience"]),
        ("training.min_learning_rate_frac=0.1", ["needs schedule 'cosine' or 'linear'"]),
        ("training.schedule=step", ["training.schedule", "'cosine'"]),
        ("training.lora={rank: 0}", ["training.lora", "rank", "greater than or equal to 1"]),
        ("training.lora={dropout: 0.1}", ["training.lora.dropout", "unknown key"]),
        ("training.lora={target_modules: []}", ["target_modules is empty"]),
        ("training.label_selector={drift-ray/training: true}", ["training.label_selector"]),
        ("replicas.label_selector={drift-ray/rollout: 'in()'}", ["replicas.label_selector"]),
        ("training.resources={trainer: 0}", ["training.resources", "greater than 0"]),
        ("training.trackers=[tensorbord]", ["training.trackers", "'tensorboard'"]),
        ("training.trackers=[mlflow, mlflow]", ["trackers names one twice"]),
        ("weighting={clip: 1, min_importance_weight: 2}", ["weighting", "no weight would be left"]),
        ("weighting.gate.min_ess=1", ["weighting.gate.min_ess", "'min_ess_frac'"]),
        ("weighting.all_failed_scale=2", ["weighting.all_failed_scale"]),
        ("weighting.gamma=1.01", ["weighting.gamma", "less than or equal to 1"]),
        ("weighting.gamma=.nan", ["weighting.gamma", "nan"]),
        ("rollout.sampling.top_p=0", ["rollout.sampling.top_p"]),
        ("weighting.name=../x", ["weighting.name"]),
        ("weighting.name=..", ["weighting.name"]),
        ("seed=-1", ["seed"]),
        ("seed=2147483648", ["seed"]),
        ("run=", ["run", "string"]),
        ("run=''", ["run"]),
        ("model.path=''", ["model.path"]),
        ("training.loss_turns=first", ["training.loss_turns", "'last'", "'all'"]),
        ("task.train.source=web", ["task.train.source", "'addition'", "'jsonl'"]),
        ("task.train.source=jsonl", ["task.train", "needs a path"]),
        ("task.train.split=dev", ["task.train", "'dev'"]),
        ("task.environment.user_template=x", ["task.environment", "{question}"]),
        ("task.environment.format_penalty=0.1", ["task.environment.format_penalty"]),
        ("rollout=7", ["rollout", "7"]),
        ("model={}", ["model.path", "required"]),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, override: str, said: list[str]) -> None:
    message = refused(tmp_path, override)
    assert all(part in message for part in [*said, "config.yaml"]), message


def test_all_wrong_settings_are_named_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, "seed=-1", "rollout.group_size=0", "training.epochs=3")
    assert all(key in message for key in ("seed", "rollout.group_size", "training.epochs"))


def test_a_default_that_depends_on_a_wrong_value_is_no_second_mistake(tmp_path: Path) -> None:
    message = refused(tmp_path, "task.environment.max_turns=0")
    assert "task.environment.max_turns" in message
    assert "system_prompt" not in message


def test_where_a_file_is_no_yaml_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("model: [")
    with pytest.raises(ConfigError, match=f'in "{file}", line 1') as caught:
        load_config(file)
    assert str(caught.value).startswith(f"{file} is not YAML")


def test_the_grader_is_checked_before_anything_starts(tmp_path: Path) -> None:
    assert "unknown grader 'judge'" in refused(tmp_path, "task.grader=judge")
    message = refused(tmp_path, "task.grader={name: numeric, rel_tl: 0.1}")
    assert "task.grader" in message
    assert "Did you mean 'rel_tol'?" in message


def test_an_own_grader_is_imported_before_anything_starts(tmp_path: Path) -> None:
    from drift_ray.pipeline import Pipeline

    with pytest.raises(ConfigError, match="there is no module 'judges'"):
        Pipeline(run_config(tmp_path, "task.grader=judges:fair"))


def test_equal_graders_read_alike_however_they_are_written(tmp_path: Path) -> None:
    plain = run_config(tmp_path, "task.grader=numeric")
    spelled = run_config(tmp_path, "task.grader={rel_tol: 0.000001, name: numeric}")
    other = run_config(tmp_path, "task.grader={name: numeric, rel_tol: 0.1}")
    assert plain.task.grader == spelled.task.grader == "numeric"
    assert other.task.grader == '{"name": "numeric", "rel_tol": 0.1}'
    again = RunConfig.model_validate(other.model_dump(mode="json"))
    assert again == other


def test_a_count_is_a_number_and_not_a_yes(tmp_path: Path) -> None:
    assert "rollout.group_size" in refused(tmp_path, "rollout.group_size=yes")


def test_overrides_are_yaml_and_the_last_one_wins(tmp_path: Path) -> None:
    config = run_config(
        tmp_path,
        "rollout.sampling.temperature=0.5",
        "rollout.sampling.temperature=0.25",
        "rollout.sampling.max_tokens=9",
        "task.environment.system_prompt=null",
        "task.environment.feedback=a=b",
        "replicas.engine.arguments={max_num_seqs: 3, x: [1, a]}",
        "replicas.engine.arguments.dtype=bfloat16",
        "training.learning_rate=1e-4",
    )
    assert (config.rollout.sampling.temperature, config.rollout.sampling.max_tokens) == (0.25, 9)
    assert config.rollout.group_size == 2  # its neighbours in the file stay
    assert config.task.environment.system_prompt is None
    assert config.task.environment.feedback == "a=b"
    assert config.replicas.engine == VllmConfig(
        arguments={"max_num_seqs": 3, "x": [1, "a"], "dtype": "bfloat16"}
    )
    assert config.training.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "not of the form"),
        ("=1", "not of the form"),
        (" =1", "not of the form"),
        ("rollout.group_size.x=1", "'group_size' is a value"),
        ("run.x=1", "'run' is a value"),
        ("replicas.engine={a: [", "not YAML"),
        ("replicas.engine=a: b: c", "not YAML"),
    ],
)
def test_malformed_overrides_are_named(tmp_path: Path, override: str, said: str) -> None:
    message = refused(tmp_path, override)
    assert repr(override) in message
    assert said in message


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("weighting.beta={kl: 0.5}", "weighting.beta"),
        ("weighting.gate={min_ess_frac: 0.2}", "weighting.gate"),
        ("weighting.verdicts=math", "weighting.verdicts"),
        ("training={held_out_frac: 0.1, early_stopping: {}}", "training.early_stopping"),
    ],
)
def test_overlap_and_what_needs_the_whole_run_exclude_each_other(
    tmp_path: Path, override: str, named: str
) -> None:
    path = write_config(tmp_path)
    with pytest.raises(ConfigError, match=f"pipeline.overlap trains before .*{named} needs"):
        load_config(path, [override, "pipeline.overlap=true"])
    load_config(path, [override])
    load_config(path, ["weighting.beta={kl: 0.5, per: group}", "pipeline.overlap=true"])


@pytest.mark.parametrize(
    "value",
    ["2020-13-45", "0b_", "-0x_", "!!int ''", "!!float x", "!!bool x", "!!timestamp x", "[" * 1000],
    ids=lambda value: value[:12],
)
def test_values_at_which_yaml_stumbles_are_configuration_errors(tmp_path: Path, value: str) -> None:
    refused(tmp_path, f"run={value}")
    path = tmp_path / "bad.yaml"
    path.write_text(f"run: {value}\n")
    with pytest.raises(ConfigError):
        load_config(path)


def test_a_section_that_is_empty_in_the_file_can_be_overridden(tmp_path: Path) -> None:
    path = write_config(tmp_path, rollout=None)
    assert load_config(path, ["rollout.group_size=3"]).rollout.group_size == 3


def test_an_override_changes_one_place_even_if_the_file_uses_an_alias(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "run: r\nmodel: {path: m}\n"
        "rollout: {sampling: &s {max_tokens: 7}}\nevaluation: {sampling: *s}\n"
        "task: {name: t, train: {source: addition}, test: {source: addition, split: test}}\n"
    )
    config = load_config(path, ["evaluation.sampling.max_tokens=99"])
    assert config.evaluation.sampling.max_tokens == 99
    assert config.rollout.sampling.max_tokens == 7


def test_engine_arguments_are_plain_data(tmp_path: Path) -> None:
    # They are hashed and recorded as JSON; YAML reads an unquoted date as an object.
    message = refused(tmp_path, "replicas.engine.arguments.revision=2024-01-01")
    assert "replicas.engine.arguments.revision" in message
    assert "JSON" in message


OPENAI = "replicas.engine={kind: openai, urls: [http://h/v1], model: m, max_model_len: 99}"


def test_an_engine_is_vllm_unless_told_otherwise(tmp_path: Path) -> None:
    engine = run_config(tmp_path).replicas.engine
    assert engine == VllmConfig()
    assert run_config(tmp_path, "replicas.engine={}").replicas.engine == engine
    assert run_config(tmp_path, "replicas.engine.kind=vllm").replicas.engine == engine
    assert engine.world_size == 1
    sizes = "replicas.engine.arguments={tensor_parallel_size: 4, pipeline_parallel_size: 2}"
    assert run_config(tmp_path, sizes).replicas.engine.world_size == 8


def test_an_engine_may_be_a_fleet_of_servers(tmp_path: Path) -> None:
    config = run_config(tmp_path, OPENAI, "replicas.engine.max_in_flight=7")
    engine = config.replicas.engine
    assert isinstance(engine, OpenAIConfig)
    assert (engine.urls, engine.model, engine.max_in_flight) == (["http://h/v1"], "m", 7)
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["replicas.engine.kind=sglang"], ["replicas.engine:", "kinds are vllm and openai"]),
        (["replicas.engine.kind=null"], ["replicas.engine:", "kinds are vllm and openai"]),
        (["replicas.engine=vllm"], ["replicas.engine:", "kinds are vllm and openai", "'vllm'"]),
        (["replicas.engine=null"], ["replicas.engine:", "kinds are vllm and openai"]),
        (["replicas.engine.argument={}"], ["replicas.engine.argument:", "'arguments'?"]),
        (["replicas.engine.max_model_len=9"], ["replicas.engine.max_model_len:", "Known: arg"]),
        (["replicas.engine.arguments=7"], ["replicas.engine.arguments:", "7"]),
        ([OPENAI, "replicas.engine.time_s=3"], ["replicas.engine.time_s:", "'timeout_s'?"]),
        ([OPENAI, "replicas.engine.arguments={}"], ["replicas.engine.arguments: unknown key"]),
        ([OPENAI, "replicas.engine.urls=[]"], ["replicas.engine.urls:", "at least 1"]),
        ([OPENAI, "replicas.engine.urls=http://h"], ["replicas.engine.urls:", "list"]),
        ([OPENAI, "replicas.engine.max_attempts=0"], ["replicas.engine.max_attempts:", "got 0"]),
        (
            ["replicas.engine.kind=openai"],
            [f"replicas.engine.{key}: required" for key in ("urls", "model", "max_model_len")],
        ),
    ],
)
def test_wrong_settings_of_an_engine_are_named(
    tmp_path: Path, overrides: list[str], said: list[str]
) -> None:
    message = refused(tmp_path, *overrides)
    assert all(part in message for part in said), message


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [("3", 1, 3), ("{max: 3}", 1, 3), ("{min: 2, max: 3}", 2, 3), ("{min: 3, max: 3}", 3, 3)],
)
def test_replicas_are_a_range(tmp_path: Path, value: str, least: int, most: int) -> None:
    config = run_config(tmp_path, f"replicas.num_replicas={value}")
    assert config.replicas.num_replicas == ReplicaRange(min=least, max=most)
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("0", "replicas.num_replicas.max:"),
        ("yes", "replicas.num_replicas.max:"),
        ("two", "replicas.num_replicas:"),
        ("2.5", "replicas.num_replicas:"),
        ("[1, 2]", "replicas.num_replicas:"),
        ("{}", "replicas.num_replicas.max: required"),
        ("{min: 0, max: 1}", "replicas.num_replicas.min:"),
        ("{min: 3, max: 2}", "min 3 is greater than max 2"),
        ("{max: 2, mim: 1}", "Did you mean 'min'?"),
    ],
)
def test_what_is_no_range_of_replicas_is_named(tmp_path: Path, value: str, said: str) -> None:
    message = refused(tmp_path, f"replicas.num_replicas={value}")
    assert said in message
    assert "replicas.num_replicas" in message


def test_loss_on_all_turns_needs_one_growing_sequence(tmp_path: Path) -> None:
    message = refused(tmp_path, "model.history=template", "training.loss_turns=all")
    assert "training.loss_turns" in message
    assert "model.history" in message
    for overrides in (
        ["model.history=template", "training.loss_turns=last"],
        ["model.history=append", "training.loss_turns=all"],
    ):
        assert run_config(tmp_path, *overrides).model.history in overrides[0]
    assert run_config(tmp_path).model.history == "append"
    assert "model.history" in refused(tmp_path, "model.history=tokens")


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_a_token_limit_is_a_count_or_absent(tmp_path: Path, value: str) -> None:
    key = "rollout.sampling.max_tokens_per_traj"
    assert f"{key}:" in refused(tmp_path, f"{key}={value}")
    assert run_config(tmp_path).rollout.sampling.max_tokens_per_traj is None
    assert run_config(tmp_path, f"{key}=9").rollout.sampling.max_tokens_per_traj == 9
    assert run_config(tmp_path, f"{key}=null").evaluation.sampling.max_tokens_per_traj is None


@pytest.mark.parametrize("text", ["", "[1]", "a", "7", "a: b: c", "? [1]\n: 2", "\x00", "1: 2"])
def test_files_that_are_no_settings_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"odd\.yaml"):
        load_config(path)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("run: a\nseed: 1\nmodel: {path: m, path: n}\n")
    with pytest.raises(ConfigError, match=r"'path' a second time[^$]*line 3, column 18"):
        load_config(path)
    path.write_text(
        f"{yaml.safe_dump(GOOD)}replicas: &r {{}}\nrollout: {{<<: *r, group_size: 2}}\n"
    )
    assert load_config(path).rollout.group_size == 2


@pytest.mark.parametrize("text", ["[" * 3000, "- " * 3000, "{a: " * 2000])
def test_endless_nesting_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"deep\.yaml[^$]*nesting more than 50 deep"):
        load_config(path)


def test_what_is_said_of_wrong_values_stays_short(tmp_path: Path) -> None:
    assert len(refused(tmp_path, f"rollout.group_size={'x' * 9999}")) < 600 + len(str(tmp_path))
    message = refused(tmp_path, f"training.trackers=[{'x, ' * 999}x]")
    assert len(message.splitlines()) == 22
    assert message.endswith("and 980 more")


@pytest.mark.parametrize(
    "override",
    [
        "rounds.num_rounds=1000000000",
        "rollout.prompts_per_part=1000000000000000000000000000000",
        "replicas.num_cpus=1.0e+308",
        "training.num_gpus=1.0e+308",
        "task.train={source: reasoning_gym, dataset: syllogism, num_prompts: 1000000000}",
    ],
)
def test_sizes_that_would_never_end_are_refused(tmp_path: Path, override: str) -> None:
    assert override.partition("=")[0] in refused(tmp_path, override)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="Cannot read"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"run: \xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml"):
        load_config(tmp_path / "latin.yaml")


def sections(section: BaseModel) -> list[BaseModel]:
    nested = [getattr(section, name) for name in type(section).model_fields]
    return [section, *(s for each in nested if isinstance(each, BaseModel) for s in sections(each))]


def test_every_section_is_frozen_and_closed(tmp_path: Path) -> None:
    found = sections(run_config(tmp_path))
    assert len(found) == 19
    for section in found:
        name = next(iter(type(section).model_fields))
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, getattr(section, name))
        assert type(section).model_config["extra"] == "forbid"
        assert type(section).__doc__


def test_the_default_system_prompt_asks_for_what_will_be_parsed() -> None:
    assert "<think>" in str(EnvironmentConfig(think=True).system_prompt)
    assert "<think>" not in str(EnvironmentConfig(think=False).system_prompt)
    assert "<answer>" in str(EnvironmentConfig(think=False).system_prompt)
    assert EnvironmentConfig(system_prompt=None).system_prompt is None


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda each: (
        st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=8), each, max_size=3)
    ),
    max_leaves=8,
)


def paths(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, field in model.model_fields.items():
        found.append((*prefix, name))
        for section in sections_of(field.annotation):
            found += paths(section, (*prefix, name))
    return found


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """Every kind of section that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for choice in get_args(annotation) for section in sections_of(choice)]


def load_or_explain(path: Path, *overrides: str) -> RunConfig | str:
    try:
        return load_config(path, overrides)
    except ConfigError as error:
        return str(error)


GOOD: dict[str, Any] = {
    "run": "r",
    "model": {"path": "m"},
    "task": {"name": "t", "train": {"source": "addition"}, "test": {"source": "addition"}},
}


@given(path=st.sampled_from(paths(RunConfig)), junk=JUNK, extra=st.booleans())
def test_any_mapping_is_a_configuration_or_a_configuration_error(
    tmp_path_factory: pytest.TempPathFactory, path: tuple[str, ...], junk: Any, extra: bool
) -> None:
    raw = copy.deepcopy(GOOD)
    node = raw
    for step in path[:-1]:
        node = node.setdefault(step, {})
    node[path[-1] + ("x" if extra else "")] = junk
    file = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    result = load_or_explain(file)
    assert isinstance(result, RunConfig) or path[0] in result
    assert not (isinstance(result, RunConfig) and extra)


@given(
    key=st.sampled_from([".".join(path) for path in paths(RunConfig)]) | st.text(max_size=12),
    value=st.text(alphabet="0123456789-_.:+eExXbo!&*{}[],'\"naint# \n", max_size=12)
    | st.text(max_size=12),
)
def test_any_override_gives_a_configuration_or_a_configuration_error(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "good.yaml"
    if not file.exists():
        file.write_text(yaml.safe_dump(GOOD))
    assert load_or_explain(file, f"{key}={value}")
