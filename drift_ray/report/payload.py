"""Trajectories as the page carries them: columns, every text once, compressed.

Two streams, both gzip in base64, which needs no escaping inside HTML: ``columns`` is JSON (see
:class:`Payload`); ``tokens`` holds one byte a sampled token, first all lengths, then all levels of
probability.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from drift_ray.report.tokens import TokenSpans
from drift_ray.report.trajectories import applied_format_penalty

LEVELS_PER_NAT = 20.0
"""A level is a twentieth of a nat: 255 stands for a probability of 3e-6 or less."""

COLUMNS = (
    "prompt_id",
    "trajectory_index",
    "question",
    "gold",
    "messages",
    "turns",
    "token_ids",
    "logprobs",
    "first_success_turn",
    "format_penalty",
    "end_reason",
    "discounted_return",
    "repetition_penalty",
    "shaped_return",
    "importance_weight",
)
"""What :meth:`Payload.add` reads of a table."""

_ROW_FIELDS = (
    "source", "prompt", "index", "first", "end", "opening", "firstTurn", "disc", "fmt", "rep",
    "ret", "w", "beta", "total", "distinct",
)  # fmt: skip
_TURN_FIELDS = ("text", "after", "reward", "ok", "stop", "answers", "tokens")


class _Table:
    """Values by number, each kept once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._number: dict[Any, int] = {}

    def add(self, value: Any) -> int:
        number = self._number.setdefault(value, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number


@dataclass(slots=True)
class Payload:
    """Trajectories under way into the page.

    Args:
        spans: Lays tokens over texts; None: messages are not coloured.
    """

    spans: TokenSpans | None
    sources: list[dict[str, Any]] = field(default_factory=list)
    _texts: _Table = field(default_factory=_Table)
    _prompts: _Table = field(default_factory=_Table)
    _chats: _Table = field(default_factory=_Table)
    _rows: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in _ROW_FIELDS})
    _turns: dict[str, list[Any]] = field(
        default_factory=lambda: {name: [] for name in _TURN_FIELDS}
    )
    _lengths: list[int] = field(default_factory=list)
    _levels: list[npt.NDArray[np.uint8]] = field(default_factory=list)

    def add(self, table: pa.Table, source: int, betas: Mapping[str, float]) -> None:
        """Take all rows of a table.

        Args:
            table: Has :data:`COLUMNS`.
            source: Number of the source they came from, in ``sources``.
            betas: β by prompt id, where it is known and differs between prompts.
        """
        plain = table.drop_columns(["token_ids", "logprobs"]).to_pylist()
        for row in plain:
            self._add_row(row, source, betas.get(row["prompt_id"]))
        self._add_tokens(plain, table["token_ids"], table["logprobs"])

    def _add_row(self, row: Mapping[str, Any], source: int, beta: float | None) -> None:
        texts, turns = self._texts.add, row["turns"]
        opening, after = _split(row["messages"], len(turns))
        norms = [norm for turn in turns for norm in turn["answer_norms"]]
        values = {
            "source": source,
            "prompt": self._prompts.add(
                (texts(row["prompt_id"]), texts(row["question"]), texts(row["gold"]))
            ),
            "index": row["trajectory_index"],
            "first": row["first_success_turn"] or 0,
            "end": texts(row["end_reason"]),
            "opening": self._chat(opening),
            "firstTurn": len(self._turns["text"]),
            "disc": _digits(row["discounted_return"]),
            # As it was weighed: another grader, or the first turn alone, may count.
            "fmt": _digits(applied_format_penalty(row)),
            "rep": _digits(row["repetition_penalty"]),
            "ret": _digits(row["shaped_return"]),
            "w": _digits(row["importance_weight"]),
            "beta": _digits(beta),
            "total": len(norms),
            "distinct": len(set(norms) - {""}),
        }
        for name, value in values.items():
            self._rows[name].append(value)
        for turn, messages in zip(turns, after, strict=True):
            self._turns["text"].append(texts(turn["text"]))
            self._turns["after"].append(self._chat(messages))
            self._turns["reward"].append(_digits(turn["reward"]))
            self._turns["ok"].append(int(turn["format_ok"]))
            self._turns["stop"].append(texts(turn["stop_reason"]))
            self._turns["answers"].append([texts(answer) for answer in turn["answers"]])

    def _chat(self, messages: Sequence[Mapping[str, str]]) -> int:
        texts = self._texts.add
        return self._chats.add(
            tuple((texts(each["role"]), texts(each["content"])) for each in messages)
        )

    def _add_tokens(
        self,
        rows: Sequence[Mapping[str, Any]],
        token_ids: pa.ChunkedArray,
        logprobs: pa.ChunkedArray,
    ) -> None:
        """Token spans of every turn; -1 tokens where its text is not laid out."""
        turns = [turn for row in rows for turn in row["turns"]]
        if self.spans is None:
            self._turns["tokens"] += [-1] * len(turns)
            return
        ids, probabilities = token_ids.combine_chunks(), logprobs.combine_chunks()
        flat_ids = ids.values.to_numpy()
        levels = _levels(probabilities.values.to_numpy(zero_copy_only=False))
        where = [
            (start + turn["token_start"], start + turn["token_end"])
            for start, row in zip(ids.offsets.to_numpy().tolist(), rows, strict=False)
            for turn in row["turns"]
        ]
        sampled = [flat_ids[start:end] for start, end in where]
        found = self.spans.lengths([turn["text"] for turn in turns], sampled)
        for lengths, (start, end) in zip(found, where, strict=True):
            self._turns["tokens"].append(-1 if lengths is None else len(lengths))
            if lengths is not None:
                self._lengths += lengths
                self._levels.append(levels[start:end])

    def encode(self, **more: Any) -> dict[str, str]:
        """Both streams, as base64 text by name.

        Args:
            more: Further values, ready for JSON, for the page's code.
        """
        content = {
            **more,
            "sources": self.sources,
            "texts": self._texts.values,
            "prompts": self._prompts.values,
            "chats": self._chats.values,
            "rows": self._rows,
            "turns": self._turns,
            "levelsPerNat": LEVELS_PER_NAT,
        }
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        levels = b"".join(each.tobytes() for each in self._levels)
        return {
            # A lone surrogate, which no stream may hold, becomes a question mark.
            "columns": _packed(text.encode(errors="replace")),
            "tokens": _packed(bytes(self._lengths) + levels),
        }


def group_betas(table: pa.Table) -> dict[str, float]:
    """β of every prompt, worked out from what it made of the returns: w_i/w_j = exp((R_i - R_j)/β).

    Args:
        table: Columns ``prompt_id``, ``shaped_return`` and ``importance_weight``.

    Returns:
        By prompt id, where returns of one prompt differ and their weights are positive. A limit
        that changed a prompt's least or greatest weight changes what is found here, too.
    """
    weighed = table.filter(pa.compute.greater(table["importance_weight"], 0.0))
    prompts = weighed["prompt_id"].to_numpy(zero_copy_only=False)
    returns = weighed["shaped_return"].to_numpy()
    weight = np.log(weighed["importance_weight"].to_numpy())
    order = np.lexsort((returns, prompts))
    first = np.flatnonzero(np.r_[True, prompts[order][1:] != prompts[order][:-1]])
    if not len(order):
        return {}
    low, high = order[first], order[np.r_[first[1:] - 1, len(order) - 1]]
    differs = (weight[high] - weight[low] > 1e-6) & (returns[high] > returns[low])
    low, high = low[differs], high[differs]
    beta = (returns[high] - returns[low]) / (weight[high] - weight[low])
    return dict(zip(prompts[low].tolist(), beta.tolist(), strict=True))


def _split(
    messages: Sequence[Mapping[str, str]], num_turns: int
) -> tuple[list[Mapping[str, str]], list[list[Mapping[str, str]]]]:
    """What stands before the first assistant message, and what after each of them."""
    opening: list[Mapping[str, str]] = []
    after: list[list[Mapping[str, str]]] = []
    for message in messages:
        if message["role"] == "assistant" and len(after) < num_turns:
            after.append([])
        else:
            (after[-1] if after else opening).append(message)
    return opening, after + [[] for _ in range(num_turns - len(after))]


def _digits(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.6g}")


def _levels(logprobs: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    surprise = np.nan_to_num(-logprobs.astype(np.float64), nan=0.0) * LEVELS_PER_NAT
    return np.clip(np.round(surprise), 0, 255).astype(np.uint8)


def _packed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, compresslevel=6, mtime=0)).decode()
