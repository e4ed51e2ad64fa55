"""Configurations and rows of prompts that went wrong somewhere: strategies for the fuzz tests."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
_SMALLER = [("num_prompts", 5), ("prompts_per_round", 2), ("num_rounds", 3)]


def _shipped(path: Path) -> str:
    """A configuration without its comments and with few prompts, which is quick to read."""
    text = re.sub(r"^ *#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for name, number in _SMALLER:
        text = re.sub(rf"\b{name}: \d+", f"{name}: {number}", text)
    return text


TEXTS = [_shipped(path) for path in sorted(ROOT.glob("jobs/configs/*.yaml"))]
TREES = [yaml.safe_load(text) for text in TEXTS]
NEW_KEYS = ["zzz", "é", "", "run ", "A" * 300, "num_prompt", "beta", "<<"]
_HUGE = [10**9, 10**30, -(10**30), 1e308, -1e308, 1e-320, float("inf"), float("nan")]
_PATHS = ["", " ", "/", "..", "~", "~nobody/x", "nope://x", "memory://x", "zip://a::b", "C:\\x"]
_TEXTS = [
    "a\nb",
    "é" * 3,
    "🦜" * 50,
    "x" * 5000,
    "\x00",
    "\ud800",
    "nan",
    "0x10",
    "{question}",
    "{",
]
_NAMES = ["builtin:x", "os:path", "sys:nope", "math:sqrt", "a:b", "no.such.module:grade", "a b:c"]
_NESTED = [[], {}, [[]], [None], [[[1]]], {"a": 1}, {"": ""}, {"name": "numeric", "rel_tol": "a"}]
VALUES = [
    *(None, True, False, 0, -1, 1, 2, 0.5, {"min": 2, "max": 1}, {"ess_frac": 0.4}, {"kl": 1e-300}),
    *(*_HUGE, *_PATHS, *_TEXTS, *_NAMES, *_NESTED),
]
PIECES = [
    *("\t", "\x00", "\ufeff", "\u2028", "\x85", "\x1b", "\r", "é", "🦜"),
    *("&a ", "*a", "<<: *a\n", "<<: {}\n", "&a [*a]", "? ", "---\n", "...\n", "%YAML 9.9\n"),
    *("!!python/object:os.system x", "!!int x", "!!float x", "!!binary x", "!!timestamp x"),
    *("!!set {a, b}", "!!omap [a: 1]", "2020-13-45", "0b", "1_0:", "[", "{", "]", "}", ": ", "- "),
    *("'", '"', "|\n", ">\n", "#", "@", "`", "=", "\\x", "run: x\n", "seed: 1\nseed: 2\n"),
]
BLOBS = [b"", b"\xff\xfe", b"[" * 3000, b"{a: " * 2000, b"\n" * 9999, b"a: &a [*a]\n", bytes(99)]


def places(tree: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a mapping or list of settings holds something, at any depth."""
    nested = tree if isinstance(tree, list | dict) else []
    for key, value in nested.items() if isinstance(nested, dict) else enumerate(nested):
        yield (*prefix, key)
        yield from places(value, (*prefix, key))


@st.composite
def wrong_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Shipped settings with one to three changes: another value, an unknown key, one key less."""
    tree = copy.deepcopy(draw(st.sampled_from(TREES)))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        *sections, last = draw(st.sampled_from(list(places(tree))))
        node = tree
        for key in sections:
            node = node[key]
        value = copy.deepcopy(draw(st.sampled_from(VALUES)))
        match draw(st.sampled_from(["value", "value", "value", "delete", "key", "nest"])):
            case "value":
                node[last] = value
            case "delete":
                del node[last]
            case "key" if isinstance(node, dict):
                node[draw(st.sampled_from(NEW_KEYS))] = value
            case _:
                node[last] = [node[last]]
        if not tree:
            break
    return tree


@st.composite
def wrong_files(draw: st.DrawFn) -> bytes:
    """A shipped file, cut, with pieces put in, lines twice or indented; or no text at all."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.sampled_from([1, 1, 2, 4]))):
        at = draw(st.integers(0, len(text)))
        line_start = text.rfind("\n", 0, at) + 1
        line = text[line_start:].partition("\n")[0] + "\n"
        match draw(st.sampled_from(["piece", "piece", "piece", "again", "indent", "cut", "drop"])):
            case "piece":
                text = text[:at] + draw(st.sampled_from(PIECES)) + text[at:]
            case "again":
                text = text[:line_start] + line + text[line_start:]
            case "indent":
                text = text[:line_start] + " " * draw(st.integers(1, 5)) + text[line_start:]
            case "cut":
                text = text[:at]
            case "drop":
                text = text[:line_start] + text[line_start + len(line) :]
    data = text.encode()
    match draw(st.sampled_from(["text"] * 8 + ["utf-16", "byte", "blob"])):
        case "utf-16":
            return text.encode("utf-16")
        case "byte":
            return data[: len(data) // 2] + b"\x80" + data[len(data) // 2 :]
        case "blob":
            return draw(st.sampled_from(BLOBS) | st.binary(max_size=60))
    return data


SCALARS = st.sampled_from([None, True, 0, -1.5, 1e308, float("nan"), "", " ", "q", "\ud800", "½"])
FIELDS = SCALARS | st.text(max_size=6) | st.sampled_from([[], {}, ["a"], {"a": 1}, 10**400])
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "question": FIELDS | st.sampled_from(["1+1?", "2+2?", "x" * 60]),
        "answer": FIELDS,
        "id": FIELDS,
        "": FIELDS,
    },
)
GOOD_ROWS = st.builds(
    lambda number: {"question": f"{number}+1?", "answer": number + 1, "id": number},
    st.integers(0, 9),
)
_LINES = [
    b"",
    b"  ",
    b"{",
    b"null",
    b"[1]",
    b"\xff",
    b"\xef\xbb\xbf{}",
    b"{}",
    b"[" * 3000,
    b'{"a": 01}',
]


@st.composite
def row_files(draw: st.DrawFn) -> bytes:
    """JSON lines: good rows, odd rows, broken lines, in any order; perhaps cut off."""
    lines = draw(
        st.lists(
            st.one_of(
                GOOD_ROWS.map(_line),
                ROWS.map(_line),
                st.sampled_from(_LINES),
                st.binary(max_size=9),
            ),
            max_size=8,
        )
    )
    data = b"\n".join(lines)
    return data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data


def _line(row: Any) -> bytes:
    return json.dumps(row).encode()
