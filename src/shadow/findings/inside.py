"""Figures of real models: medians over the matrices inside layers, and embeddings and head apart.

An embedding has as many entries as many layers have and another spectrum: a median over all matrices, or a sum, tells
of it and of them at once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from shadow.findings.summary_rows import OutsideRow, row_of
from shadow.spectra.levels import round_trip

if TYPE_CHECKING:
    import pandas as pd

INSIDE = (
    "kept", "relative_norm", "relative_norm_unrounded", "excess_purity", "excess_purity_unrounded",
    "equivalent_directions", "spikes_sharp", "decay_cosine", "energy_share",
)  # fmt: skip
SHORTEST = 256  # entries of a row, below which distinct values tell nothing


def inside_layers(deltas: pd.DataFrame) -> dict[str, Any]:
    """Counts of matrices, of what is known of them, and medians of INSIDE and of alignments less their null."""
    inside = deltas[deltas["layer"].notna()]
    return {
        "matrices": len(inside),
        "known": int((inside["kept"].notna() & inside["kept_reason"].isna()).sum()),
        "unexplained": int((inside["kept_reason"] == "rounding_unexplained").sum()),
        "rounded_away": int((inside["kept_reason"] == "rounded_away").sum()),
        "coherent": int(inside["equivalent_directions"].notna().sum()),
        **{name: _median(inside[name]) for name in INSIDE},
        **{
            f"alignment_{side}_excess": _median(inside[f"alignment_{side}"] - inside[f"alignment_{side}_null"])
            for side in ("left", "right")
        },
    }


def outside_layers(deltas: pd.DataFrame) -> list[OutsideRow]:
    """The same medians of each module outside the layers: embeddings, head, projectors."""
    outside = deltas[deltas["layer"].isna()]
    return [
        row_of(
            OutsideRow,
            {"component": component, "module": module, "matrices": len(rows)},
            {name: _median(rows[name]) for name in INSIDE},
        )
        for (component, module), rows in outside.groupby(["component", "module"], sort=False)
    ]


def _median(values: pd.Series) -> float | None:
    found = float(values.astype(float).median()) if values.notna().any() else math.nan
    return found if math.isfinite(found) else None


def few_values(deltas: pd.DataFrame) -> list[str]:
    """A sentence for each side of which most matrices have so few distinct values that it went through fewer bits."""
    told = []
    for side in ("base", "tuned"):
        rows = deltas[deltas[f"levels_{side}"].notna() & (deltas["cols"] >= SHORTEST)]
        pairs = zip(rows[f"levels_{side}"].astype(float), rows["cols"], strict=True)
        named = [round_trip(share, int(cols)) for share, cols in pairs]
        for bits in ("INT4", "8 bits"):
            count = named.count(bits)
            if count > len(named) / 2:
                what = "4 bits" if bits == "INT4" else "8 bits"
                told.append(
                    f"{count} of {len(named)} matrices of {side} have as few distinct values in a row as a copy that "
                    f"went through {what} or was pruned, and figures of the delta may be those of that copy"
                )
    return told
