"""Numbers of tables as Python has them: a figure is None where it is missing or not finite."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]


def finite(value: Any) -> float | None:
    """The value as a float; None where it is missing or not finite.

    What a table has instead of a missing value, pandas.NA, is no float.
    """
    if not isinstance(value, int | float | np.number) or not math.isfinite(value):
        return None
    return float(value)


def over(part: float, whole: float) -> float | None:
    """part / whole; None over nothing."""
    return finite(part / whole) if whole else None


def floats(values: pd.Series | NDArray[Any]) -> Floats:
    """A column as floats, NaN where it is null."""
    if isinstance(values, np.ndarray):
        return np.asarray(values, dtype=np.float64)
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def are(texts: pd.Series | NDArray[Any], *wanted: str) -> NDArray[np.bool_]:
    """Which texts are one of these, however a column says that there is none."""
    if not isinstance(texts, np.ndarray):
        texts = np.array([one if isinstance(one, str) else None for one in texts], dtype=object)
    found = np.zeros(len(texts), dtype=np.bool_)
    for text in wanted:
        found |= np.asarray(texts == text, dtype=np.bool_)
    return found


def total_of(values: Floats) -> float:
    """The sum, correctly rounded; infinite where no float is that large."""
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf


def median(values: Floats) -> float | None:
    """The median of what is not NaN; None where nothing is, or where it is not finite."""
    known = values[~np.isnan(values)]
    return finite(np.median(known)) if len(known) else None


def median_of(column: pd.Series | NDArray[Any]) -> float | None:
    """The median of what a column has; None where it has nothing, or where it is not finite."""
    return median(floats(column))
