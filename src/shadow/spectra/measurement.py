"""The scope of a measurement, and the numbers of one matrix.

Imports nothing that computes: reports are read and options declared without torch and NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from shadow.options import option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Level = Literal["norms", "sketch", "full", "exact"]
LEVELS: Mapping[Level, str] = {  # what is measured at each
    "norms": "norms alone",
    "sketch": "spectra in a few passes over the weights, each figure with its error",
    "full": "all of every spectrum",
    "exact": "the same in float64",
}
WITHOUT_SPECTRA: Sequence[Level] = ("norms",)
Subjects = Literal["all", "delta"]  # of a pair: those whose spectra are measured


@dataclass(frozen=True)
class Method:
    """The method of computing numbers, which must agree for reports to be comparable."""

    level: Level = option(
        f"How much to measure. {'; '.join(': '.join(level) for level in LEVELS.items())}.", "full"
    )
    subjects: Subjects = option(
        "Measure the spectra of base, tuned and delta (all), or of the delta alone.", "all"
    )

    @property
    def has_spectra(self) -> bool:
        """True if singular values are computed or estimated."""
        return self.level not in WITHOUT_SPECTRA


Shape = tuple[int, int]  # (rows, cols) of a matrix
Formats = tuple[str, str]  # in which base and tuned are stored
Subject = Literal["base", "tuned", "delta"]
Cast = Literal["tuned", "base"]  # the side that is the other, stored in another format
Precision = Literal["default", "exact", "sketch"]
Values = dict[str, float | int | None]  # of one matrix, by column
Cells = Mapping[str, float | int | str | None]  # the same with columns of text
# standard deviations of an error: 95 in 100 by Student's t of 22 probes
SIGMAS = 2.1


@dataclass(frozen=True)
class Estimate:
    """A figure, and how far from it the truth lies at most, in 95 of 100 cases."""

    value: float
    error: float


def columns(figures: Mapping[str, float | int | Estimate | None]) -> Values:
    """Values of figures by column; an estimate has a second column for its error."""
    values: Values = {}
    for name, figure in figures.items():
        if isinstance(figure, Estimate):
            values[name] = figure.value
            values[f"{name}_error"] = figure.error
        else:
            values[name] = figure
    return values


@dataclass(frozen=True)
class Measurement:
    """The numbers of one subject."""

    subject: Subject
    # as used: default turns to exact for some matrices; None where no spectrum was measured
    precision: Precision | None
    values: Cells  # by column of matrices.parquet
    sigma: NDArray[np.float64]  # singular values (m,), descending, in weights; (0,) likewise

    def number(self, column: str) -> float | None:
        """A column that contains numbers."""
        value = self.values[column]
        if value is None:
            return None
        return float(value)


def norm_alone(subject: Subject, norm: float, values: Values | None = None) -> Measurement:
    """Make the numbers of a subject whose spectrum is not measured: its Frobenius norm, in weights,
    and other values by column.
    """
    import numpy as np

    of_norm: Values = {"frobenius_norm": norm, "participation_ratio": None}
    return Measurement(subject, None, of_norm | (values or {}), np.zeros(0))
