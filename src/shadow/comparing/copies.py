"""Whether a tuned side is a mere copy of its base, so that its delta is rounding and no update."""

from __future__ import annotations

import numpy as np
import pandas as pd

from shadow.comparing.matching import ComparedReport
from shadow.dtypes import FLOATS
from shadow.spectra.levels import round_trip
from shadow.summary.layer_medians import SHORTEST

ROUNDED = 0.25  # share of a change beyond its format's rounding, below which it is that rounding
NOISE = 5.0  # of purity_z: within it a delta has no structure beyond noise


def copy_reason(report: ComparedReport) -> str | None:
    """Why the delta of a report is the rounding of a copy, in words; None where it need not be."""
    deltas = report.subject("delta")
    deltas = deltas[deltas["layer"].notna()]
    if deltas.empty:
        return None
    if _is_cast(report.tensors):
        return f"{report.name} is a copy of its base in another format"
    if _most(_of_few_bits(deltas)):
        return (
            f"{report.name} is a copy in few bits, of its base or of a model tuned from it: its"
            " delta is, at least in part, the rounding of that copy"
        )
    if _most(deltas["purity_z"].abs() <= NOISE):
        return (
            f"the delta of {report.name} is like noise, as the rounding of a copy leaves it: it may"
            " be a copy of its base"
        )
    return None


def _most(found: pd.Series[bool]) -> bool:
    return bool(2 * found.sum() > len(found))


def _is_cast(tensors: pd.DataFrame) -> bool:
    """Whether every tensor that changed is the other side's in another format."""
    changed = tensors[(tensors["side"] == "tuned") & (tensors["relative_norm"] > 0)]
    return len(changed) > 0 and bool(changed["cast"].isin(["tuned", "base"]).all())


def _of_few_bits(deltas: pd.DataFrame) -> pd.Series[bool]:
    """Which matrices of the tuned side, and not of the base, went through 8 bits or fewer.

    By the levels of their format where it is known, by the format that they are stored in, or by
    how few distinct values their rows have.
    """
    rounded = (deltas["format_copy"] == 1) | (deltas["kept_high"] < ROUNDED)
    formats = deltas["dtype"].fillna("").str.partition("/")
    base, tuned = formats[0], formats[2].where(formats[2] != "", formats[0])
    stored = tuned.map(_is_few) & ~base.map(_is_few)
    levels = {
        side: np.array(
            [
                share == share and cols >= SHORTEST and round_trip(share, int(cols)) is not None
                for share, cols in zip(deltas[f"levels_{side}"], deltas["cols"], strict=True)
            ],
            bool,
        )
        for side in ("base", "tuned")
    }
    found: pd.Series[bool] = rounded | stored | (levels["tuned"] & ~levels["base"])
    return found


def _is_few(dtype: str) -> bool:
    form = FLOATS.get(dtype)
    return bool(dtype) and (form is None or form.bits <= 8)
