"""How values of each type of column are stored, in every format; null where a number is undefined."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import overload

from shadow.reports.columns import Type


@dataclass(frozen=True)
class StoredType:
    """The names that formats have for a type. arrow is that of one value, also of a list.

    json is of JSON Schema and of Data Package.
    """

    arrow: str
    sqlite: str
    duckdb: str
    json: str
    is_list: bool = False

    @property
    def arrow_text(self) -> str:
        return f"list<{self.arrow}>" if self.is_list else self.arrow


STORED_TYPES: dict[Type, StoredType] = {
    "string": StoredType("string", "TEXT", "VARCHAR", "string"),
    "int": StoredType("int64", "INTEGER", "BIGINT", "integer"),
    "float": StoredType("double", "REAL", "DOUBLE", "number"),
    "bool": StoredType("bool", "INTEGER", "BOOLEAN", "boolean"),
    "ints": StoredType("int64", "TEXT", "BIGINT[]", "array", is_list=True),
    "floats": StoredType("float", "TEXT", "FLOAT[]", "array", is_list=True),
}


@overload
def null_if_undefined(value: float | None) -> float | None: ...


@overload
def null_if_undefined(value: float | int | str | None) -> float | int | str | None: ...


def null_if_undefined(value: float | int | str | None) -> float | int | str | None:
    """Null instead of NaN or infinity: a number that overflowed is no number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
