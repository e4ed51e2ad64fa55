"""Which grader judges answers, and its options.

A grader is chosen by name alone (``numeric``) or with options (``{name: numeric, rel_tol: 0.01}``).
Either way it has one canonical text, in which configurations hold it: equal choices compare equal,
hash alike and read the same in ``run.json``, however they were written.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from drift_ray.errors import ConfigError

Benchmark = Literal[
    "metamathqa",
    "gsm8k",
    "math500",
    "hendrycks_math",
    "gpqa",
    "mmlu",
    "mmlu-redux",
    "mmlu_pro",
    "theoremqa",
]
Tolerance = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
ImportPath = Annotated[str, Field(pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*$")]
"""``package.module:name``."""


class _Grader(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReferenceGraderConfig(_Grader):
    """What the DRIFT reference does, benchmark by benchmark."""

    name: Literal["reference"] = "reference"
    benchmark: Benchmark = "metamathqa"
    """Multiple choice compares letters, TheoremQA the first number, all others text."""


class MathGraderConfig(_Grader):
    """Mathematical equivalence, by math-verify: ``1/2`` is ``0.5`` is ``50%``."""

    name: Literal["math"] = "math"


class NumericGraderConfig(_Grader):
    """One number against another: correct within either tolerance."""

    name: Literal["numeric"] = "numeric"
    rel_tol: Tolerance = 1e-6
    """Largest difference, as a share of the gold's magnitude."""
    abs_tol: NonNegativeFloat = 0.0
    """Largest difference, in the gold's unit; what counts when the gold is 0."""


class ChoiceGraderConfig(_Grader):
    """The letter of a multiple choice, A to J, however the answer words it."""

    name: Literal["choice"] = "choice"


class ReasoningGymGraderConfig(_Grader):
    """The scorer of the generator that made the problem; golds come of source ``reasoning_gym``."""

    name: Literal["reasoning_gym"] = "reasoning_gym"
    min_score: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """An answer is correct from this score on; scorers give some partly right ones less than 1."""


class CustomGraderConfig(_Grader):
    """A function of your own, ``grade(answer, gold) -> bool | Verdict``."""

    name: ImportPath
    """Import path, ``package.module:function``."""


GraderConfig = (
    ReferenceGraderConfig
    | MathGraderConfig
    | NumericGraderConfig
    | ChoiceGraderConfig
    | ReasoningGymGraderConfig
    | CustomGraderConfig
)
_BY_NAME: dict[str, type[GraderConfig]] = {
    "reference": ReferenceGraderConfig,
    "math": MathGraderConfig,
    "numeric": NumericGraderConfig,
    "choice": ChoiceGraderConfig,
    "reasoning_gym": ReasoningGymGraderConfig,
}


def parse_grader(choice: str | Mapping[str, Any] | GraderConfig) -> GraderConfig:
    """The grader that a name, a mapping of options, or a canonical text chooses.

    Raises:
        ConfigError: Unknown name, unknown option or wrong value; says which, and what is known.
    """
    if isinstance(choice, BaseModel):
        return choice
    options = _options(choice)
    name = options.get("name")
    if not isinstance(name, str):
        raise ConfigError("a grader's mapping needs a `name`", f"choose one of: {_known_names()}")
    kind = CustomGraderConfig if ":" in name else _BY_NAME.get(name)
    if kind is None:
        raise ConfigError(
            f"unknown grader {name!r}",
            f"choose one of: {_known_names()}{_meant(name, _BY_NAME)}",
        )
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        raise ConfigError(_explain(kind, name, error)) from None


def canonical_text(config: GraderConfig) -> str:
    """The name alone where every option has its default, else sorted JSON without defaults."""
    options = {"name": config.name, **config.model_dump(mode="json", exclude_defaults=True)}
    return config.name if len(options) == 1 else json.dumps(options, sort_keys=True)


def _options(choice: Any) -> Mapping[str, Any]:
    if isinstance(choice, str) and choice.lstrip().startswith("{"):
        try:
            choice = json.loads(choice)
        except json.JSONDecodeError as error:
            raise ConfigError(f"the grader's options are not JSON: {error}") from None
    if isinstance(choice, str):
        return {"name": choice}
    if not isinstance(choice, Mapping):
        raise ConfigError(
            f"a grader is a name or a mapping with a name, not {choice!r}",
            f"choose one of: {_known_names()}",
        )
    return choice


def _known_names() -> str:
    return f"{', '.join(sorted(_BY_NAME))}, or your own as package.module:function"


def _meant(word: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f". Did you mean {close[0]!r}?" if close else ""


def _explain(kind: type[GraderConfig], name: str, error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        option = ".".join(map(str, item["loc"]))
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown option {option!r}{_meant(option, kind.model_fields)}")
        elif option == "name":
            lines.append(f"{name!r} is no import path of the form package.module:function")
        else:
            lines.append(f"{option}: {item['msg']} (got {item['input']!r})")
    known = ", ".join(sorted(kind.model_fields.keys() - {"name"})) or "none"
    return f"grader {name!r}: {'; '.join(lines)} (its options: {known})"


def _as_canonical_text(choice: Any) -> str:
    # Validators speak ValueError, which ConfigError is; its arrow would break the one-line message.
    try:
        return canonical_text(parse_grader(choice))
    except ConfigError as error:
        raise ValueError("; ".join(filter(None, (error.message, error.hint)))) from None


GraderChoice = Annotated[str, BeforeValidator(_as_canonical_text)]
"""A configuration field: takes a name or a mapping, checks it, and holds its canonical text."""
