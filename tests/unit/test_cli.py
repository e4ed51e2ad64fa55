"""The command line: every error is one message and one exit code, never a traceback."""

from __future__ import annotations

import json
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import pytest

from drift_ray import __version__
from drift_ray.cli import cli, main, stages
from drift_ray.cli.app import COMPLETION
from drift_ray.cli.commands import forget_switches, say, show
from drift_ray.config import BetaTarget
from drift_ray.config_file import load_config
from drift_ray.errors import (
    EXIT_INTERRUPTED,
    ClusterError,
    ConfigError,
    DataError,
    DriftRayError,
    FingerprintError,
    ModelError,
    StageError,
    StorageError,
    TaskError,
)
from drift_ray.progress import console
from drift_ray.store import RunStore
from tests.unit.scripted import write_config

ERRORS = [
    ClusterError,
    ConfigError,
    DataError,
    DriftRayError,
    FingerprintError,
    ModelError,
    StageError,
    StorageError,
    TaskError,
]
COMMANDS = ["run", "rollout", "weigh", "train", "evaluate"]
"""Those that work; others look and ask."""


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(stages, "execute", fail)


def outcome(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    """Exit code and what stands on stderr."""
    code = main(args)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return code, captured.err


@pytest.mark.parametrize("error", ERRORS)
def test_each_error_is_printed_and_has_its_exit_code(
    error: type[DriftRayError],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing(error("part 7 [b]is[/b] bad", "do this"), monkeypatch)
    code, said = outcome(capsys, "run", "c.yaml")
    assert code == error.exit_code
    assert said == "error: part 7 [b]is[/b] bad\n  → do this\n"


def test_the_list_of_commands_is_in_order_and_whole_on_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out.partition("Commands:")[2].partition("Exit codes:")[0]
    names = [line.split()[0] for line in listed.splitlines() if line.strip()]
    assert names == list(cli.commands)
    assert "..." not in listed


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), click.Abort()])
def test_ctrl_c_says_that_nothing_is_lost(
    interrupt: BaseException,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing(interrupt, monkeypatch)
    code, said = outcome(capsys, "run", "c.yaml")
    assert code == 130
    assert "same command" in said


def test_a_bug_is_not_dressed_up_as_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(ZeroDivisionError(), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        main(["run", "c.yaml"])


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_hand_their_arguments_on(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded_runs(monkeypatch)
    assert main([command, "c.yaml", "a.b=1", "c=-2", "d=x y"]) == 0
    stage = None if command == "run" else command
    assert calls == [(("c.yaml", ("a.b=1", "c=-2", "d=x y"), stage), False)]


def recorded_runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[object, ...], bool]]:
    """What the command line would run: path, overrides and stage; whether failures come again."""
    calls: list[tuple[tuple[object, ...], bool]] = []

    def record(*given: object, retry_failed: bool = False, **_: object) -> None:
        calls.append((given, retry_failed))

    monkeypatch.setattr(stages, "execute", record)
    return calls


def test_failures_are_sampled_again_only_on_demand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = recorded_runs(monkeypatch)
    for command in ("rollout", "evaluate"):
        assert main([command, "--retry-failed", "c.yaml"]) == 0
    assert calls == [(("c.yaml", (), command), True) for command in ("rollout", "evaluate")]
    assert outcome(capsys, "weigh", "--retry-failed", "c.yaml")[0] == 2


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[float], list[float]]]:
    """Run directory, β and γ of every sweep that would start, without Ray."""
    from drift_ray import cluster
    from drift_ray.weighting import sweep, table

    found: list[tuple[str, list[float], list[float]]] = []

    def pretend(store: RunStore, parts: list[str], configs: list[Any]) -> list[Any]:
        found.append((store.url, [c.beta for c in configs], [c.gamma for c in configs]))
        return []

    monkeypatch.setattr(cluster, "ray_cluster", lambda config: nullcontext())
    monkeypatch.setattr(sweep, "sweep", pretend)
    monkeypatch.setattr(table, "sweep_table", lambda rows: "")
    return found


def test_a_sweep_takes_a_configuration_or_a_run_directory(
    tmp_path: Path,
    sweeps: list[tuple[str, list[float], list[float]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(write_config(tmp_path))
    assert outcome(capsys, "weigh", path, "--beta", "0.1,1")[0] == 8  # there are no rollouts
    assert outcome(capsys, "weigh", path, "weighting.gamma=0.5")[0] == 8  # claims the directory
    run = load_config(path).run
    RunStore(run).write_bytes("rollouts/part-000000-0123abcd.parquet", b"")
    for target in (path, run):
        assert outcome(capsys, "weigh", target, "--beta", "0.05, 0.1", "--gamma", "1,0.8")[0] == 0
        assert outcome(capsys, "weigh", target, "--gamma=0.7", "weighting.beta={kl: 1}")[0] == 0
    expected = [
        (run, [0.05, 0.1, 0.05, 0.1], [1.0, 1.0, 0.8, 0.8]),
        (run, [BetaTarget(kl=1)], [0.7]),
    ]
    assert sweeps == expected * 2
    assert outcome(capsys, "weigh", run, "--beta", "0.1")[0] == 0
    assert sweeps[-1] == (run, [0.1], [0.5])  # γ as the run was last weighed with


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--beta", "0.1,-1"], "beta=-1.0"),
        (["--beta", "0"], "greater than 0"),
        (["--gamma", "1.5"], "less than or equal to 1"),
        (["--beta", "small"], "no list of numbers"),
        (["--beta", "nan"], "beta"),
        (["--beta", ""], "no list of numbers"),
        (["--beta", "0.1", "weighting.method=drfit"], "Did you mean 'drift'?"),
    ],
)
def test_a_sweep_over_impossible_values(
    tmp_path: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = outcome(capsys, "weigh", str(write_config(tmp_path)), *options)
    assert code == 2
    assert said in message


@pytest.mark.parametrize("command", [["topup"], ["rescore", "--grader", "math"]])
def test_a_run_that_is_not_there(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = outcome(capsys, *command, str(tmp_path / "nowhere"))
    assert code == 2
    assert "There is no run in" in said


def test_a_run_directory_is_weighed_with_its_own_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_config(tmp_path))
    assert outcome(capsys, "weigh", path, "weighting.gamma=0.5")[0] == 8  # claims the directory
    code, said = outcome(capsys, "weigh", load_config(path).run)
    assert (code, "Run `drift-ray rollout` first" in said) == (8, True)


def test_a_weighting_that_does_not_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = outcome(capsys, "weigh", str(write_config(tmp_path)), "weighting.method=drfit")
    assert code == 2
    assert "Did you mean 'drift'?" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_writes_nothing(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_config(tmp_path))
    code = main([command, path, "--dry-run", "--json"])
    plan = json.loads(capsys.readouterr().out)
    states = {step["state"] for step in plan["steps"]}
    assert (code, states) == {
        "run": (0, {"due"}),
        "rollout": (0, {"due"}),
        "weigh": (8, {"blocked"}),
        "train": (8, {"blocked"}),
        "evaluate": (0, {"due", "left out"}),
    }[command]
    assert not (tmp_path / "run").exists()
    assert main([command, path, "--dry-run"]) == code
    assert "at once" in capsys.readouterr().out.replace("_", " ")


@pytest.mark.parametrize("args", [["run", "--like", "r"], ["weigh", "--beta", "1", "--dry-run"]])
def test_options_that_do_not_go_together(
    args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(capsys, *args, str(write_config(tmp_path)))[0] == 2


def test_every_stage_has_its_command() -> None:
    from drift_ray.pipeline import Stage

    assert set(COMMANDS) == {"run", *Stage}
    others = {"compare", "doctor", "example", "inspect", "report", "rescore", "scale", "status"}
    assert set(cli.commands) == {*COMMANDS, *others, "topup"}
    assert all(command.help for command in cli.commands.values())


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main(["-h"]) == main(["run", "--help"]) == 0
    assert "CONFIG.yaml" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


def test_an_example_is_a_configuration_to_start_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["example"]) == 0
    names = capsys.readouterr().out.split()
    assert "demo" in names
    for name in ("demo", "builtin:demo"):
        assert main(["example", name]) == 0
        assert capsys.readouterr().out.startswith("# Two-digit addition")
    assert outcome(capsys, "example", "dmo")[0] == 2


@pytest.mark.parametrize(("package", "named"), [("ray", True), ("vllm", True), ("nonsense", False)])
def test_packages_of_an_extra_are_asked_for(
    package: str,
    named: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing(
        ModuleNotFoundError(f"No module named '{package}'", name=f"{package}.data"), monkeypatch
    )
    if named:
        code, said = outcome(capsys, "run", "c.yaml")
        assert code == 8
        assert package in said
        assert "drift-ray[cpu]" in said
    else:
        with pytest.raises(ModuleNotFoundError):
            main(["run", "c.yaml"])


def test_every_exit_code_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    codes = capsys.readouterr().out.split("Exit codes:")[1]
    assert all(f" {error.exit_code} " in codes for error in ERRORS if error is not DriftRayError)
    assert f" {EXIT_INTERRUPTED} " in codes


@pytest.mark.parametrize("name", cli.commands)
def test_every_command_teaches(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its help has an example, which is right as far as one can tell without running it."""
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out
    words = shlex.split(said.split("Example:\n")[1].split("\n")[0])
    after = words[words.index("drift-ray") + 1 :]
    assert after[0] == name
    cli.commands[name].make_context(name, after[1:])
    assert "--quiet" in said
    options = [each for each in cli.commands[name].params if isinstance(each, click.Option)]
    assert all(option.help for option in options)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["rolout", "c.yaml"], "Did you mean 'rollout'?"),
        (["run", "c.yaml", "--dryrun"], "Did you mean '--dry-run'?"),
        (["weigh", "c.yaml", "--betas", "1"], "Did you mean '--beta'?"),
    ],
)
def test_a_slip_of_the_pen_is_understood(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = outcome(capsys, *args)
    assert code == 2
    assert said in message


def test_the_shell_can_complete(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert f"_DRIFT_RAY_COMPLETE={shell}_source" in COMPLETION
        monkeypatch.setenv("_DRIFT_RAY_COMPLETE", f"{shell}_source")
        with pytest.raises(SystemExit, match="0"):
            main([])
        assert "_DRIFT_RAY_COMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("status ru", "dir,ru"),
        ("doctor ru", "file,ru"),
        ("compare ru", "file,ru"),
        ("run mi", "file,mi"),
        ("example de", "plain,demo"),
    ],
)
def test_arguments_are_completed(
    line: str, offered: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_DRIFT_RAY_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", f"drift-ray {line}")
    monkeypatch.setenv("COMP_CWORD", "2")
    with pytest.raises(SystemExit, match="0"):
        main([])
    assert capsys.readouterr().out == f"{offered}\n"


@pytest.mark.parametrize("args", [["-q", "run", "c.yaml"], ["run", "c.yaml", "--quiet"]])
def test_quiet_wherever_it_stands(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bool] = []
    monkeypatch.setattr(stages, "execute", lambda *_, **__: heard.append(console.quiet))
    assert main(args) == 0
    assert main(["run", "c.yaml"]) == 0
    assert heard == [True, False]  # a switch is of one command alone


def test_quiet_leaves_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    console.quiet = True
    say("working")
    show("the result")
    assert capsys.readouterr().out == "the result\n"
    assert console.quiet
    forget_switches()


@pytest.mark.parametrize("how", ["switch", "variable"])
def test_no_colours(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(ConfigError("bad"), monkeypatch)
    colours: list[Any] = []
    monkeypatch.setattr(click, "secho", lambda text, *, fg, err, color: colours.append(color))
    monkeypatch.setenv("NO_COLOR", "1" if how == "variable" else "")
    assert main(["run", "c.yaml", *(["--no-color"] if how == "switch" else [])]) == 2
    monkeypatch.setenv("NO_COLOR", "")
    assert main(["run", "c.yaml"]) == 2
    assert colours == [False, None]  # None: as the terminal can


@pytest.mark.parametrize("args", [[], ["fly"], ["run"], ["run", "--fast", "c.yaml"]])
def test_wrong_usage(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(capsys, *args)[0] == 2


@pytest.mark.parametrize(
    ("overrides", "code", "said"),
    [
        (["beta"], 2, "'beta'"),
        (["weighting.bta=1"], 2, "Did you mean 'beta'?"),
        (["task.train.num_prompts=1000000"], 3, "1000000"),
        (["task.test.split=train"], 3, "also in task.train"),
        (["task.train={source: jsonl, path: none.jsonl}"], 3, "none.jsonl"),
        (["model.path=./none"], 4, "./none"),
        (["run=nope://x"], 7, "nope"),
    ],
)
def test_mistakes_are_found_before_anything_starts(
    tmp_path: Path,
    overrides: list[str],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_config(tmp_path)
    found, message = outcome(capsys, "run", str(path), *overrides)
    assert found == code
    assert said in message
    assert not (tmp_path / "run").exists()


def test_files_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = outcome(capsys, "run", str(tmp_path / "none.yaml"))
    assert (code, "none.yaml" in said) == (2, True)
    code, said = outcome(capsys, "run", str(tmp_path))
    assert (code, str(tmp_path) in said) == (2, True)


@pytest.mark.parametrize(("stage", "needed"), [("weigh", "rollout"), ("train", "weigh")])
def test_a_stage_without_its_input_says_what_to_run_first(
    tmp_path: Path, stage: str, needed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = outcome(capsys, stage, str(write_config(tmp_path)))
    assert code == 8
    assert f"drift-ray {needed}" in said


def test_a_run_directory_of_other_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_config(tmp_path))
    assert outcome(capsys, "weigh", path)[0] == 8  # claims the run directory, then lacks rollouts
    run = load_config(path).run
    RunStore(run).write_bytes("rollouts/part-000000-0123abcd.parquet", b"")
    code, said = outcome(capsys, "weigh", path, "seed=1")
    assert code == 6
    assert "seed (there 0, now 1), task.prompts (there " in said


def test_a_run_directory_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    code, said = outcome(capsys, "weigh", str(write_config(tmp_path)), f"run={tmp_path}/file/run")
    assert code == 7
    assert f"{tmp_path}/file/run" in said


def test_a_truncated_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from drift_ray.config_file import load_config
    from drift_ray.lineage import trace
    from drift_ray.rollout.stage import plan
    from drift_ray.store import RunStore
    from drift_ray.tasks.sources import load_prompts

    path = write_config(tmp_path)
    assert outcome(capsys, "weigh", str(path))[0] == 8  # claims the run directory
    config = load_config(path)
    train, test = (
        load_prompts(each, task=config.task.name, seed=config.seed)
        for each in (config.task.train, config.task.test)
    )
    part = next(iter(plan(config, trace(config, train, test), train)))
    RunStore(config.run).write_bytes(part.name, b"PAR1")
    code, said = outcome(capsys, "weigh", str(path))
    assert code == 5
    assert part.name in said
    assert "Delete this file" in said


def test_logins_do_not_reach_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(tmp_path)
    code = main(["weigh", str(path), "run=memory://me:hush@cli-tests/run"])
    captured = capsys.readouterr()
    assert code == 8
    assert "hush" not in captured.out + captured.err
