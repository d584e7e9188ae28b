"""The numbers of one matrix. Imports nothing that computes: reports are read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Subject = Literal["base", "tuned", "delta"]
Precision = Literal["default", "exact", "fast"]
Values = dict[str, float | int | None]  # of one matrix, by column
Cells = Mapping[str, float | int | str | None]  # the same with columns of text


@dataclass(frozen=True)
class Measurement:
    """The numbers of one subject."""

    subject: Subject
    """base, tuned or delta."""

    precision: Precision
    """That was used: default turns to exact for some matrices."""

    values: Cells
    """By the names of the columns of matrices.parquet."""

    sigma: NDArray[np.float64]
    """Singular values (m,), descending, in weights."""

    lists: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """Columns of spectra.parquet that hold several numbers each, beside sigma; NaN: undefined."""

    def number(self, column: str) -> float | None:
        """A column that holds numbers."""
        value = self.values[column]
        return None if value is None else float(value)
