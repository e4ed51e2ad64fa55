"""Checks documents against what they speak of: links, symbols, commands, settings, snippets."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import click
import yaml

from drift_ray.cli.app import cli
from drift_ray.config import RunConfig
from drift_ray.config_file import build_config
from drift_ray.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("drift_ray", "jobs", "cluster", "tests")
SAMPLE_CONFIG = ROOT / "jobs" / "configs" / "demo.yaml"
"""Stands for configurations that a document only gives a name."""

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^\]\n]*(?:\n[^\]\n]*)?)\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\s][^`\n]*(?:\n[^`\n]+)?)`")
_HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.MULTILINE)
_SETTING = re.compile(rf"((?:{'|'.join(RunConfig.model_fields)})(?:\.[a-z_]+)+)(?:[=:].*)?")
_FILE = re.compile(r"\.(?:py|json|jsonl|yaml|md|html|parquet)$")
_OVERRIDE = re.compile(r"[a-z_]+(?:\.[a-z_]+)*=.*")
_IN_CHECKOUT = re.compile(rf"(?:{'|'.join(FOLDERS)})/\S*")
_PROGRAMS = {"make", "drift-ray", "python", "torchrun", "ray", "sbatch"}


@dataclass(frozen=True)
class Fence:
    """A fenced block."""

    language: str
    text: str
    line: int
    """Of its first line, from 1."""


@dataclass(frozen=True)
class Document:
    """A Markdown file."""

    path: Path
    text: str

    @classmethod
    def read(cls, path: Path) -> Document:
        return cls(path, path.read_text(encoding="utf-8"))

    @cached_property
    def fences(self) -> list[Fence]:
        return [
            Fence(found[2], re.sub(f"^{found[1]}", "", found[3], flags=re.M), self._line(found) + 1)
            for found in _FENCE.finditer(self.text)
        ]

    @cached_property
    def prose(self) -> str:
        """The text with empty lines where fenced blocks were."""
        return _FENCE.sub(lambda found: "\n" * found[0].count("\n"), self.text)

    def links(self) -> Iterator[tuple[int, str, str]]:
        """Line, text and target of every link."""
        for found in _LINK.finditer(self.prose):
            yield self._line(found), found[1], found[2]

    def code_spans(self) -> Iterator[tuple[int, str]]:
        for found in _CODE.finditer(self.prose):
            yield self._line(found), " ".join(found[1].split())

    def anchors(self) -> set[str]:
        """What links may name, as GitHub makes it of the headings."""
        found: list[str] = []
        for heading in _HEADING.findall(self.prose):
            title = _LINK.sub(lambda link: link[1], heading).lower()
            slug = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
            found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
        return set(found)

    def _line(self, found: re.Match[str]) -> int:
        return found.string.count("\n", 0, found.start()) + 1


def all_documents() -> list[Path]:
    """The Markdown files of the checkout; without git, which not every copy of it has."""
    folders = (ROOT / name for name in FOLDERS)
    return sorted([*ROOT.glob("*.md"), *(path for each in folders for path in each.rglob("*.md"))])


def problems(document: Document) -> list[str]:
    """All that a document says of this checkout and is not so, each with its line."""
    found = [
        *_link_problems(document),
        *_fence_problems(document),
        *_span_problems(document),
    ]
    return [f"{document.path.name}:{line}: {problem}" for line, problem in sorted(found)]


def _link_problems(document: Document) -> Iterator[tuple[int, str]]:
    for line, text, target in document.links():
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.path.parent / name).resolve() if name else document.path
        if not (path.exists() or path == document.path) or not path.is_relative_to(ROOT):
            yield line, f"link to {name}, which is not there"
            continue
        if anchor and path.suffix == ".md":
            linked = document if path == document.path else Document.read(path)
            if anchor not in linked.anchors():
                yield line, f"link to {target}: no such heading"
        symbol = re.fullmatch(r"`([A-Za-z_][\w.]*)(?:\(\))?`", text)
        if symbol and path.suffix == ".py" and symbol[1] not in defined_names(path):
            yield line, f"{name} defines no {symbol[1]}"


@cache
def defined_names(path: Path) -> frozenset[str]:
    """Functions, classes, their members and variables that a Python file defines."""
    found: set[str] = set()

    def collect(body: Sequence[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(f"{prefix}{node.name}")
            if isinstance(node, ast.ClassDef):
                collect(node.body, f"{prefix}{node.name}.")
            targets = [node.target] if isinstance(node, ast.AnnAssign) else []
            targets += node.targets if isinstance(node, ast.Assign) else []
            found.update(f"{prefix}{each.id}" for each in targets if isinstance(each, ast.Name))

    collect(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return frozenset(found)


def _fence_problems(document: Document) -> Iterator[tuple[int, str]]:
    for fence in document.fences:
        try:
            if fence.language == "sh":
                for line, command in _shell_lines(fence):
                    yield from ((line, each) for each in command_problems(command, whole=True))
            elif fence.language == "yaml":
                check_yaml(fence.text)
            elif fence.language == "json":
                json.loads(fence.text)
        except (ConfigError, ValueError, yaml.YAMLError) as error:
            yield fence.line, f"this {fence.language} does not load: {error}"


def check_yaml(text: str) -> None:
    """Load the settings of a snippet, laid over a whole configuration.

    Raises:
        ConfigError: They cannot be.
    """
    snippet = yaml.safe_load(text)
    if not isinstance(snippet, dict):
        raise ConfigError("no mapping of settings")
    if "apiVersion" in snippet:
        return
    raw = dict(_raw(SAMPLE_CONFIG))
    for name, section in snippet.items():
        both = isinstance(section, dict) and isinstance(raw.get(name), dict)
        raw[name] = {**raw[name], **section} if both else section
    build_config(raw, [], where="the snippet")


def _shell_lines(fence: Fence) -> Iterator[tuple[int, str]]:
    """Commands, each on one line, with the number of their first."""
    for found in re.finditer(r"(?:.*\\\n)*.+", fence.text):
        before = fence.text.count("\n", 0, found.start())
        yield fence.line + before, found[0].replace("\\\n", " ")


def _span_problems(document: Document) -> Iterator[tuple[int, str]]:
    for line, code in document.code_spans():
        if code.split()[0] in _PROGRAMS and " " in code:
            yield from ((line, each) for each in command_problems(code, whole=False))
        elif (setting := _SETTING.fullmatch(code)) and not _FILE.search(setting[1]):
            if not is_setting(setting[1]):
                yield line, f"there is no setting {setting[1]}"
        elif _IN_CHECKOUT.fullmatch(code) and not any(ROOT.glob(code.rstrip("/"))):
            yield line, f"there is no {code}"


@cache
def _raw(path: Path) -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return raw


@cache
def is_setting(key: str) -> bool:
    """Whether a configuration may have this dotted key."""
    names = key.split(".")
    above = [".".join(names[:number]) for number in range(1, len(names))]
    unknown = [f"{each}: unknown key" for each in (*above, key)]
    no_section = [f"{each}: Input should be" for each in above]
    try:
        build_config({}, [f"{key}=null"], where="it")
    except ConfigError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        return not any(line.startswith((*unknown, *no_section)) for line in lines)
    return True


def command_problems(command: str, *, whole: bool) -> Iterator[str]:
    """What is wrong with a shell command.

    Args:
        command: One line.
        whole: Whether it is complete, so that what it leaves out is missing.
    """
    tokens = [token for token in shlex.split(command, comments=True) if "…" not in token]
    while tokens and re.match(r"[A-Z_]+=", tokens[0]):
        tokens = tokens[1:]
    ends = [i for i, token in enumerate(tokens) if token in {"&", "&&", "|", ";", ">"}]
    tokens = tokens[: ends[0]] if ends else tokens
    if not tokens:
        return
    program = re.sub(r"3(?:\.\d+)?$", "", tokens[0].rsplit("/", 1)[-1])
    arguments = tokens[1:]
    for path in (each for each in arguments if _IN_CHECKOUT.fullmatch(each)):
        if not any(ROOT.glob(path.rstrip("/"))):
            yield f"`{command}`: there is no {path}"
    if program == "make":
        found: Iterator[str] = _make_problems(arguments)
    elif program == "drift-ray":
        found = _drift_ray_problems(arguments, whole=whole)
    elif program == "ray" and "--" in arguments:
        entrypoint = shlex.join(arguments[arguments.index("--") + 1 :])
        found = command_problems(entrypoint, whole=whole)
    elif program in {"python", "torchrun"}:
        found = _python_problems(arguments)
    elif program == "sbatch":
        found = _override_problems(arguments)
    else:
        return
    yield from (f"`{command}`: {each}" for each in found)


def _make_problems(arguments: Sequence[str]) -> Iterator[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for argument in arguments:
        name, is_variable, _ = argument.partition("=")
        pattern = rf"\$\({name}\)|^{name} [?:]?=" if is_variable else rf"^{name}:"
        if not re.search(pattern, makefile, re.MULTILINE):
            yield f"the Makefile knows no {name}"


def _drift_ray_problems(arguments: Sequence[str], *, whole: bool) -> Iterator[str]:
    if not arguments or arguments[0].startswith("-"):
        commands: list[click.Command | None] = [cli]
        rest = list(arguments)
    else:
        commands = [cli.commands.get(name) for name in arguments[0].split("|")]
        rest = list(arguments[1:])
    for command in commands:
        if command is None:
            yield f"drift-ray has no command {arguments[0]}"
            continue
        try:
            if whole and "--help" not in rest:
                command.make_context(command.name, list(rest))
            else:
                command.make_parser(click.Context(command)).parse_args(list(rest))
        except click.ClickException as error:
            yield error.format_message()
        else:
            yield from _override_problems(rest)


def _python_problems(arguments: Sequence[str]) -> Iterator[str]:
    if "-m" in arguments:
        start = arguments.index("-m") + 1
        place = ROOT / arguments[start].replace(".", "/")
        candidates = [place.with_suffix(".py"), place / "__main__.py"]
        is_ours = arguments[start].split(".")[0] in {"drift_ray", "tests"}
    else:
        start = 0
        candidates = [ROOT / arguments[0]]
        is_ours = arguments[0].endswith(".py")
    if not is_ours:
        return
    script = next((each for each in candidates if each.is_file()), None)
    if script is None:
        yield f"there is no {arguments[start]}"
        return
    # A script's options stand in it or in a module beside it that it shares with others.
    sources = [script, *script.parent.glob("_*.py")]
    known = "".join(each.read_text(encoding="utf-8") for each in sources)
    for option in arguments[start + 1 :]:
        name = option.partition("=")[0]
        if name.startswith("--") and f'"{name}"' not in known:
            yield f"{script.name} has no option {name}"
    yield from _override_problems(arguments[start + 1 :])


def _override_problems(arguments: Sequence[str]) -> Iterator[str]:
    """Settings that a command changes, in the configuration that it names."""
    overrides = [each for each in arguments if _OVERRIDE.fullmatch(each) and each != "key=value"]
    named = [ROOT / each for each in arguments if each.endswith((".yaml", ".yml"))]
    configs = [each for each in named if each.is_file()]
    if not (overrides or configs):
        return
    config = configs[0] if configs else SAMPLE_CONFIG
    try:
        build_config(dict(_raw(config)), overrides, where=config.name)
    except ConfigError as error:
        yield str(error)
