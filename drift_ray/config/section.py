"""What all sections share: frozen, no unknown keys, and the bounds that recur."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFraction = Annotated[float, Field(gt=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1, lt=2**31, strict=True)]
"""Bounded as counts of engines and of Arrow are: what is beyond is a slip of the pen."""
PositiveAmount = Annotated[float, Field(gt=0.0, le=1e6)]
NonNegativeAmount = Annotated[float, Field(ge=0.0, le=1e6)]
"""CPUs or GPUs of a process: their sum over all processes has to be a number."""
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
LabelSelector = dict[
    Annotated[str, Field(pattern=rf"^([A-Za-z0-9.-]{{1,253}}/)?{_LABEL}$")],
    Annotated[str, Field(pattern=rf"^(!?{_LABEL}|!?in\({_LABEL}(, ?{_LABEL})*\))$")],
]
"""Ray's label selector: each label a value, ``!value``, ``in(a, b)`` or ``!in(a, b)``."""
FOLDER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Section(BaseModel):
    """A frozen mapping of settings that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
