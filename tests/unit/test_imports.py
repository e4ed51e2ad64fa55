"""The house's architecture: imports point one way, pure parts stay pure, help stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "drift_ray"
HEAVY = {"ray", "torch", "transformers", "vllm"}

# A module may import from its own layer and from those below, without cycles.
LAYERS = [
    {"drift_ray", "errors", "types", "config", "config_file", "grader_config", "joining"},
    {"schema"},
    {"store"},
    {
        *{"lineage", "logs", "models", "metrics", "outcome", "progress", "cluster"},
        *{"round_plan", "uploads"},
        "<part of a room>",
    },
    {"<stage of a room>"},
    {"overlap", "rounds"},
    {"pipeline", "steps"},
    {"doctor", "planning"},
    {"api", "cli", "smollm", "<command of a room>"},
]
# The rooms, and into which others they may look. The four stages meet in the run directory. A
# room's own command (`python -m drift_ray.ROOM`) stands above all rooms, as the command line does.
ROOMS = {
    "tasks": set(),
    "nano": {"tasks"},
    "rollout": {"tasks"},
    "weighting": set(),
    "training": set(),
    "evaluation": {"rollout", "tasks"},
    "report": {"evaluation", "weighting"},
    "rescoring": {"tasks", "weighting"},
    "topup": {"rollout", "tasks", "weighting"},
}
# Read, tested and reused without a cluster and without an engine.
PURE = [
    "config",
    "errors",
    "grader_config",
    "joining",
    "outcome",
    "evaluation.comparison",
    "evaluation.intervals",
    "evaluation.metrics",
    "evaluation.results",
    "report.charts",
    "report.drawing",
    "report.facts",
    "report.page",
    "report.payload",
    "report.render",
    "report.results",
    "report.search",
    "report.selection",
    "report.terminal",
    "report.tokens",
    "report.trajectories",
    "rescoring.compare",
    "rescoring.grading",
    "rescoring.stage",
    "rescoring.verdicts",
    "rollout.dispatch",
    "rollout.episode",
    "rollout.protocol",
    "rollout.work",
    "round_plan",
    "schema",
    "store",
    "tasks.addition",
    "tasks.benchmark_files",
    "tasks.benchmark_rows",
    "tasks.benchmarks",
    "tasks.environment",
    "tasks.graders",
    "tasks.graders.algebra",
    "tasks.graders.choice",
    "tasks.graders.custom",
    "tasks.graders.lists",
    "tasks.graders.mathematics",
    "tasks.graders.notation",
    "tasks.graders.numbers",
    "tasks.graders.numeric",
    "tasks.graders.reasoning_gym",
    "tasks.graders.reference",
    "tasks.graders.typography",
    "tasks.graders.units",
    "tasks.grading_case",
    "tasks.grading_channel",
    "tasks.grading_pool",
    "tasks.grading_process",
    "tasks.grading_worker",
    "tasks.holdout",
    "tasks.hub",
    "tasks.import_path",
    "tasks.mtu_bench",
    "tasks.parsing",
    "tasks.prompts",
    "tasks.readers",
    "tasks.reasoning_gym",
    "tasks.sources",
    "tasks.tool_calls",
    "topup.choice",
    "topup.rounds",
    "training.batches",
    "training.card",
    "training.cut",
    "training.data",
    "training.early_stop",
    "training.extras",
    "training.held_out",
    "training.lora",
    "training.loss",
    "training.monitors",
    "training.optimizer",
    "training.order",
    "training.parts",
    "training.rounds",
    "training.shared_arrays",
    "training.trackers",
    "training.waves",
    "types",
    "uploads",
    "weighting.advice",
    "weighting.diagnostics",
    "weighting.groups",
    "weighting.importance",
    "weighting.limits",
    "weighting.part",
    "weighting.returns",
    "weighting.split",
    "weighting.temperature",
    "weighting.verdicts",
    "weighting.weigh",
    "weighting.weightings",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Import:
    """One imported module, where, and whether only for type checkers or inside a function."""

    target: str
    line: int
    type_only: bool
    lazy: bool


Statement = ast.Import | ast.ImportFrom


def _walk(node: ast.AST, type_only: bool, lazy: bool) -> Iterator[tuple[Statement, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Statement):
            yield child, type_only, lazy
        in_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        in_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _walk(child, type_only or in_types, lazy or in_function)


@cache
def modules() -> dict[str, list[Import]]:
    """Every module of the package, by its name below ``drift_ray``, with what it imports."""
    paths = {_name(path): path for path in PACKAGE.rglob("*.py")}
    found = {}
    for name, path in paths.items():
        imports = []
        for node, type_only, lazy in _walk(ast.parse(path.read_text()), False, False):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                assert node.level == 0, f"{path}:{node.lineno}: write imports from drift_ray on"
                base = node.module or ""
                full = [f"{base}.{alias.name}" for alias in node.names]
                targets = [t if t.removeprefix("drift_ray.") in paths else base for t in full]
            imports += [
                Import(target=target, line=node.lineno, type_only=type_only, lazy=lazy)
                for target in targets
            ]
        found[name] = imports
    return found


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts) or "drift_ray"


def _own(imports: list[Import]) -> list[tuple[str, Import]]:
    """Imports from the package itself, by the name below ``drift_ray``."""
    return [
        (entry.target.removeprefix("drift_ray."), entry)
        for entry in imports
        if entry.target.split(".")[0] == "drift_ray"
    ]


def _layer(name: str) -> int:
    room, _, part = name.partition(".")
    if room in ROOMS:
        kinds = {"stage": "<stage of a room>", "__main__": "<command of a room>"}
        room = kinds.get(part, "<part of a room>")
    places = [number for number, layer in enumerate(LAYERS) if room in layer]
    assert places, f"drift_ray/{name.replace('.', '/')} has no place yet: add it to LAYERS or ROOMS"
    return places[0]


def test_imports_point_one_way() -> None:
    for name in modules():
        _check_direction(name)


def _check_direction(name: str) -> None:
    room = name.split(".")[0]
    for target, entry in _own(modules()[name]):
        if (name, target) == ("drift_ray", "api"):
            continue  # the front door names what it fetches when asked; see the last test
        where = f"drift_ray/{name.replace('.', '/')}.py:{entry.line} imports {target}"
        assert _layer(target) <= _layer(name), f"{where}, which lies above it"
        if name.endswith(".stage"):
            assert not target.endswith(".stage"), f"{where}: stages meet in the run directory"
        other = target.split(".")[0]
        if room in ROOMS and other in ROOMS and not name.endswith(".__main__"):
            assert other in {room, *ROOMS[room]}, f"{where}: {room} may not look into {other}"


def test_imports_have_no_cycle() -> None:
    graph = {
        name: {target for target, entry in _own(imports) if not entry.type_only}
        for name, imports in modules().items()
    }
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, naming the cycle
    assert order.index("types") < order.index("schema") < order.index("pipeline")


def test_pure_parts_need_no_cluster_and_no_engine() -> None:
    for name in PURE:
        _check_purity(name)


def _check_purity(name: str) -> None:
    assert name in modules(), f"drift_ray/{name.replace('.', '/')}.py is missing"
    forbidden = {"ray", "vllm"} if name.startswith("training.") else HEAVY
    seen: set[str] = set()
    todo = [name]
    while todo:
        current = todo.pop()
        seen.add(current)
        for entry in modules()[current]:
            if entry.type_only:
                continue
            library = entry.target.split(".")[0]
            assert library not in forbidden or (entry.lazy and current != name), (
                f"drift_ray/{current.replace('.', '/')}.py:{entry.line} imports {library}, "
                f"and {name} must do without"
            )
            own = entry.target.removeprefix("drift_ray.")
            if library == "drift_ray" and own not in seen:
                todo.append(own)


def test_only_the_engine_imports_vllm_and_lazily() -> None:
    found = {
        (name, entry.lazy)
        for name, imports in modules().items()
        for entry in imports
        if entry.target.split(".")[0] == "vllm"
    }
    assert found == {("rollout.vllm_engine", True)}


def test_launchers_need_only_the_command_line() -> None:
    for stage in ("pipeline", "rollout", "weigh", "train", "evaluate"):
        tree = ast.parse((ROOT / "jobs" / f"{stage}.py").read_text())
        imported = {alias.name for node, *_ in _walk(tree, False, False) for alias in node.names}
        assert imported == {"launch"}


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["-c", "import drift_ray, drift_ray.cli"], ""),
        (["-m", "drift_ray.cli", "--help"], "Usage:"),
    ],
    ids=["import", "help"],
)
def test_package_and_help_load_nothing_heavy(arguments: list[str], output: str) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    # Lines of -X importtime: "import time:   self [us] | cumulative | imported package".
    rows = [
        line.removeprefix("import time:").split("|")
        for line in result.stderr.splitlines()
        if line.startswith("import time:") and "self [us]" not in line
    ]
    loaded = {row[2].strip() for row in rows}
    total_s = sum(int(row[0]) for row in rows) / 1e6
    print(f"{' '.join(arguments)}: {len(rows)} modules in {total_s:.3f} s")
    assert "drift_ray" in loaded
    assert output in result.stdout
    assert not {module.split(".")[0] for module in loaded} & HEAVY


def test_the_help_of_every_command_is_instant() -> None:
    code = """
import sys
from drift_ray.cli import cli, main
for name in cli.commands:
    assert main([name, "--help"]) == 0
print(*sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    loaded = set(result.stdout.splitlines()[-1].split())
    assert "drift_ray.cli.stages" in loaded
    assert not loaded & {*HEAVY, "fsspec", "numpy", "pyarrow", "pydantic", "rich", "yaml"}
