"""The numbers of one matrix. Imports nothing that computes: reports are read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Subject = Literal["base", "tuned", "delta"]
Cast = Literal["tuned", "base"]  # the side that is the other, stored in another format
Precision = Literal["default", "exact"]
Order = Literal["rows", "columns", "rows and columns"]  # what of a matrix may be in another order
Values = dict[str, float | int | None]  # of one matrix, by column
Cells = Mapping[str, float | int | str | None]  # the same with columns of text


@dataclass(frozen=True)
class Measurement:
    """The numbers of one subject."""

    subject: Subject
    precision: Precision  # as used: default turns to exact for some matrices
    values: Cells  # by column of matrices.parquet
    sigma: NDArray[np.float64]  # singular values (m,), descending, in weights
    # columns of spectra.parquet with several numbers each, beside sigma; NaN: undefined
    lists: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def number(self, column: str) -> float | None:
        """A column that holds numbers."""
        value = self.values[column]
        return None if value is None else float(value)
