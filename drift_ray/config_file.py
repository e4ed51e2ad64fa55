"""From one YAML file plus dotted overrides to a checked configuration, and to errors that help."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails
from yaml.error import MarkedYAMLError

from drift_ray.config import RunConfig
from drift_ray.errors import ConfigError

BUILTIN = "builtin:"
"""What the names of configurations that come with the package begin with."""
_SHIPPED = resources.files("drift_ray") / "configs"
_MOST_ERRORS = 20
_DEEPEST = 50
_UNDERIVED = "default_factory_not_called"
_MOST_CHARS = 200
"""Of a wrong value, so that what is said about it is not buried."""
_MOST_PLACES = 3
"""A key of more sections than this says nothing about which was meant."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply ``a.b.c=value`` overrides (values are YAML), and validate.

    Args:
        path: The file, or ``builtin:NAME`` for one that comes with the package.
        overrides: Settings that differ from the file's.

    Raises:
        ConfigError: The file is missing or no YAML mapping, an override has no ``=``, or a key or
            value is wrong; names every offending key, its value and, if close, what was meant.
    """
    name = str(path).removeprefix(BUILTIN)
    text = _read_file(path) if name == str(path) else builtin_config(name)
    raw = _read_yaml(text, where=str(path))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {type(raw).__name__}, not a mapping of settings.")
    return build_config(raw, overrides, where=str(path))


def builtin_configs() -> list[str]:
    """Names of the configurations that come with the package.

    Raises:
        ConfigError: They are missing.
    """
    try:
        names = [file.name for file in _SHIPPED.iterdir()]
    except OSError as error:  # a link, in a checkout that was unpacked without links
        raise ConfigError(
            f"The configurations of the package are not there: {error}.",
            "Name a file, as jobs/configs/demo.yaml, or install the package.",
        ) from None
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def builtin_config(name: str) -> str:
    """The text of a configuration that comes with the package, comments included.

    Raises:
        ConfigError: There is none of that name.
    """
    known = builtin_configs()
    if name not in known:
        raise ConfigError(
            f"No configuration {name!r} comes with the package.", f"There are {', '.join(known)}."
        )
    return (_SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")


def build_config(raw: dict[str, Any], overrides: Sequence[str], *, where: str) -> RunConfig:
    """Apply overrides to settings, and validate.

    Args:
        raw: Settings by section; is changed.
        overrides: As for :func:`load_config`.
        where: What to call the settings in an error.

    Raises:
        ConfigError: As for :func:`load_config`.
    """
    for override in overrides:
        _apply_override(raw, override)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        where = f"{where} with the overrides given" if overrides else where
        raise ConfigError(f"{where} has wrong settings:\n{_explain(error)}") from None


def _read_file(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"No configuration file at {path}.", "Check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read {path}: {error}.") from None


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"Override {override!r} is not of the form section.key=value.")
    *sections, last = key.strip().split(".")
    node = raw
    for section in sections:
        child = {} if node.get(section) is None else node[section]
        if not isinstance(child, dict):
            raise ConfigError(f"Override {override!r}: {section!r} is a value, not a section.")
        # A copy: with YAML aliases two sections are one object.
        node[section] = node = dict(child)
    node[last] = _read_yaml(text, where=f"Override {override!r}: the value")


class _Loader(yaml.SafeLoader):
    """Refuses what PyYAML lets through: a key twice in a mapping, and nesting without end."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self._depth == _DEEPEST:
            problem = f"found nesting more than {_DEEPEST} deep"
            raise MarkedYAMLError(None, None, problem, self.get_mark())
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set[tuple[str, str]]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    problem = f"found the key {key.value!r} a second time"
                    raise MarkedYAMLError(None, None, problem, key.start_mark)
                seen.add((key.tag, key.value))
        return node


def _read_yaml(text: str, where: str) -> Any:
    try:
        loader = _Loader(text)
        loader.name = where
        return loader.get_single_data()
    # PyYAML's constructors let slip what int(), float() and datetime raise, as for 2020-13-45.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
        raise ConfigError(f"{where} is not YAML: {error}") from None


def _explain(error: ValidationError) -> str:
    lines = []
    # A default that could not be derived from a wrong value is no second mistake.
    items = [each for each in error.errors() if each["type"] != _UNDERIVED]
    for item in items[:_MOST_ERRORS]:
        where, section = _place(item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"  {where}: unknown key. {_meant_key(where, section)}")
        elif item["type"] == "missing":
            lines.append(f"  {where}: required, but missing.")
        else:
            # A whole section as it was read would bury the message.
            got = "" if isinstance(item["input"], dict) else f" (got {_shortened(item['input'])})"
            problem = item["msg"].removeprefix("Value error, ")
            lines.append(f"  {where}: {problem}{got}{_meant_value(item)}")
    if len(items) > _MOST_ERRORS:
        lines.append(f"  and {len(items) - _MOST_ERRORS} more")
    return "\n".join(lines)


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_CHARS else f"{text[:_MOST_CHARS]}…"


def _meant_key(where: str, section: type[BaseModel]) -> str:
    key = where.rpartition(".")[2]
    # A section of several kinds may know the key, only not as the kind that it is.
    elsewhere = [name for name in _places_of(key, RunConfig) if name != where]
    if 0 < len(elsewhere) <= _MOST_PLACES:
        return f"Did you mean {' or '.join(map(repr, elsewhere))}?"
    known = sorted(section.model_fields)
    close = difflib.get_close_matches(key, known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."


def _places_of(key: str, section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings of this name: the right key may stand in the wrong section."""
    for name, field in section.model_fields.items():
        if name == key:
            yield f"{prefix}{name}"
        for kind in _kinds(field.annotation).values():
            if kind is not None:
                yield from _places_of(key, kind, f"{prefix}{name}.")


def _meant_value(item: ErrorDetails) -> str:
    if item["type"] != "literal_error":
        return ""
    known = re.findall(r"'([^']+)'", str(item["ctx"]["expected"]))
    close = difflib.get_close_matches(str(item["input"]), known, n=1)
    return f". Did you mean {close[0]!r}?" if close else ""


def _place(loc: tuple[int | str, ...]) -> tuple[str, type[BaseModel]]:
    """The dotted name of an error's place, and the section it lies in."""
    section: type[BaseModel] = RunConfig
    names = []
    kinds: dict[str, type[BaseModel] | None] = {}
    for step in map(str, loc):
        if step in kinds:  # not a key, but which kind of value its key has
            section = kinds[step] or section
            continue
        names.append(step)
        field = section.model_fields.get(step)
        kinds = _kinds(field.annotation) if field else {}
        section = kinds.get("") or section
    return ".".join(names) or "(top level)", section


def _kinds(annotation: Any, tag: str = "") -> dict[str, type[BaseModel] | None]:
    """The sections that a setting may be, by their tag; None for plain values."""
    if isinstance(annotation, type):
        return {tag: annotation if issubclass(annotation, BaseModel) else None}
    tags = [each.tag for each in getattr(annotation, "__metadata__", ()) if isinstance(each, Tag)]
    found = [_kinds(each, *tags[:1]) for each in get_args(annotation)]
    return {name: section for kinds in found for name, section in kinds.items()}
