"""How values of each type of column are stored, in every format; null where one is undefined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from shadow.reports.columns import Type

# float stands for int and bool too
Cell = str | float | Sequence[float | None] | NDArray[np.float32] | None


# in Arrow's words: of one value, and whether there is a list of them
STORED_TYPES: dict[Type, tuple[str, bool]] = {
    "string": ("string", False),
    "int": ("int64", False),
    "float": ("double", False),
    "bool": ("bool", False),
    "ints": ("int64", True),
    "floats": ("float", True),
}


@overload
def null_if_undefined(value: float | None) -> float | None: ...


@overload
def null_if_undefined(value: float | int | str | None) -> float | int | str | None: ...


def null_if_undefined(value: float | int | str | None) -> float | int | str | None:
    """Null instead of NaN or infinity: a number that overflowed is not a number."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
