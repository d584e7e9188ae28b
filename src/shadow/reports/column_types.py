"""How values of each type of column are stored, in every format; null where one is undefined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from shadow.reports.columns import Type

# float stands for int and bool too
Cell = str | float | Sequence[float | None] | NDArray[np.float32] | None


@dataclass(frozen=True)
class StoredType:
    """How a type is stored."""

    arrow: str
    """In Arrow; of one value, also of a list."""
    is_list: bool = False

    @property
    def arrow_text(self) -> str:
        """The type in Arrow's words: `double`, `list<float>`."""
        if self.is_list:
            return f"list<{self.arrow}>"
        return self.arrow


STORED_TYPES: dict[Type, StoredType] = {
    "string": StoredType(arrow="string"),
    "int": StoredType(arrow="int64"),
    "float": StoredType(arrow="double"),
    "bool": StoredType(arrow="bool"),
    "ints": StoredType(arrow="int64", is_list=True),
    "floats": StoredType(arrow="float", is_list=True),
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
