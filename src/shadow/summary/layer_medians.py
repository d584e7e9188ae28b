"""Medians over the matrices inside layers, and of embeddings and head apart.

An embedding has as many entries as many layers have and another spectrum: a median over all
matrices, or a sum, tells of it and of them at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shadow.spectra.levels import round_trip
from shadow.spectra.purity import LEAST_KEPT, NOISE, UNTOUCHED
from shadow.summary.figures import LAYER_MEDIANS, InsideLayers
from shadow.summary.numbers import floats, median, median_of
from shadow.summary.rows import CoherenceRow, OutsideRow, UnchangedRow, row_of

if TYPE_CHECKING:
    import pandas as pd


BESIDE = (  # medians of inside_layers beside LAYER_MEDIANS
    "purity_z", "numerical_rank", "rank_90", "spikes", "spike_energy", "alignment_left",
    "alignment_left_null",
    "alignment_right", "alignment_right_null", "cosine",
)  # fmt: skip
DIRECTIONS_FROM = (  # columns that the median of equivalent_directions rests on
    "equivalent_directions", "kept", "kept_reason", "excess_purity", "excess_purity_unrounded",
    "floor_ratio", "rank_ceiling", "rows", "cols",
)  # fmt: skip
SHORTEST = 256  # entries of a row, below which distinct values tell nothing
TOPS = (1, 4, 16, 20, 64)  # directions whose share of the energy is known
NEARLY_KEPT = 0.002  # how far a share of the energy may be from kept where nothing was rounded away
LOW = 0.25  # of the short side: what counts as low rank
OF_ROUNDING = 0.1  # and how much further for what was, times kept (1 - kept)


def inside_layers(deltas: pd.DataFrame) -> InsideLayers:
    """Counts of matrices and of what is known of them; medians."""
    within = deltas["layer"].notna()

    def inside(name: str) -> pd.Series:
        """One column: all at once would be a second copy of nearly every row."""
        return deltas.loc[within, name]

    reason, z = inside("kept_reason"), inside("purity_z")
    figures = {
        "matrices": int(within.sum()),
        "known": int((inside("kept").notna() & reason.isna()).sum()),
        "unexplained": int((reason == "rounding_unexplained").sum()),
        "rounded_away": int((reason == "rounded_away").sum()),
        "coherent": int(inside("equivalent_directions").notna().sum()),
        "judged": int(z.notna().sum()),
        "beyond_noise": int((z > NOISE).sum()),
        "flatter_than_noise": int((z < -NOISE).sum()),
        **{name: median_of(inside(name)) for name in (*LAYER_MEDIANS, *BESIDE)},
        **_coherent(inside),
        **_ranks(inside),
        **_few(deltas.loc[within, ["cols", "levels_base", "levels_tuned"]]),
        "in_two_formats": int(inside("dtype").astype("string").str.contains("/").sum()),
        "in_8_bits": int(inside("dtype").astype("string").str.contains("F8").sum()),
        **_short_sides(deltas.loc[within, ["rows", "cols"]]),
        **{
            f"alignment_{side}_excess": median_of(
                inside(f"alignment_{side}") - inside(f"alignment_{side}_null")
            )
            for side in ("left", "right")
        },
    }
    return row_of(InsideLayers, figures)


def outside_layers(deltas: pd.DataFrame) -> list[OutsideRow]:
    """The same medians of each module outside the layers: embeddings, head, projectors."""
    outside = deltas[deltas["layer"].isna()]
    return [
        row_of(
            OutsideRow,
            {
                "component": component,
                "module": module,
                "matrices": len(rows),
                "poolers": int(rows["tensor"].astype("string").str.contains(r"\bpooler\b").sum()),
            },
            {name: median_of(rows[name]) for name in LAYER_MEDIANS},
            _coherent(rows.__getitem__),
            {"short_side": _short_sides(rows[["rows", "cols"]])["short_side_most"]},
        )
        for (component, module), rows in outside.groupby(["component", "module"], sort=False)
    ]


def coherence(deltas: pd.DataFrame) -> list[CoherenceRow]:
    """How coherent each module inside layers is."""
    read = ["component", "module", *DIRECTIONS_FROM]
    return [
        row_of(
            CoherenceRow,
            {
                "component": str(component),
                "module": str(module),
                "matrices": len(rows),
                "coherent": int(rows["equivalent_directions"].notna().sum()),
                "short_side": _short_sides(rows[["rows", "cols"]])["short_side_most"],
            },
            _coherent(rows.__getitem__),
        )
        for (component, module), rows in deltas.loc[deltas["layer"].notna(), read].groupby(
            ["component", "module"], sort=False
        )
    ]


def median_directions(column: Callable[[str], pd.Series]) -> tuple[float | None, int]:
    """The median of equivalent_directions over rows, of which column gives those of
    DIRECTIONS_FROM by name; and how many of them are above their short side.

    None where half of those that are known or more are above, or nothing is known of any.
    """
    values, above = directions(column), int(above_short_side(column).sum())
    if 2 * above >= int((~np.isnan(values)).sum()):
        return None, above
    return median(values), above


@np.errstate(all="ignore")
def directions(column: Callable[[str], pd.Series]) -> NDArray[np.float64]:
    """equivalent_directions of each row as a median needs it: 1 / X too where it is null because
    that is above the short side, infinite for a matrix that is as flat as noise or flatter, NaN
    where it is unknown.

    Without these the median would be that of the most coherent matrices alone. What is above a
    short side may be below the values of larger matrices.
    """
    told, purity = floats(column("equivalent_directions")), _known_purity(column)
    beyond = np.where(purity > 0, 1.0 / purity, np.inf)
    return np.where(above_short_side(column), beyond, told)


def ranked(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows with that column as a median needs it that is shown beside others: infinite where
    equivalent_directions is above the short side. Medians may be infinite, which is no number to
    show.
    """
    if metric != "equivalent_directions":
        return rows
    above = above_short_side(rows.__getitem__)
    told = floats(rows["equivalent_directions"])
    return rows.assign(equivalent_directions=np.where(above, np.inf, told))


@np.errstate(all="ignore")  # a forged report may hold infinities
def above_short_side(column: Callable[[str], pd.Series]) -> NDArray[np.bool_]:
    """Which rows have no equivalent_directions because they are less coherent than a change along
    all directions of their short side alike; of others that have none it is unknown.
    """
    told, rows, cols = (floats(column(name)) for name in ("equivalent_directions", "rows", "cols"))
    above: NDArray[np.bool_] = np.isnan(told) & (
        _known_purity(column) * np.minimum(rows, cols) < 1.0
    )
    return above


@np.errstate(all="ignore")
def _known_purity(column: Callable[[str], pd.Series]) -> NDArray[np.float64]:
    """X of each row's update; NaN where storage hides it."""
    kept, stored, undone, floor = (
        floats(column(name))
        for name in ("kept", "excess_purity", "excess_purity_unrounded", "floor_ratio")
    )
    # as an audit decides it; an adapter in a report from before kept was added has no reason
    as_stored = (
        _are(column("kept_reason"), "nothing_rounded")
        | column("rank_ceiling").notna().to_numpy()
        | (floor >= UNTOUCHED)
    )
    return np.where(np.isnan(kept) & as_stored, stored, undone)


def _coherent(column: Callable[[str], pd.Series]) -> dict[str, float | int | None]:
    median, above = median_directions(column)
    return {"equivalent_directions": median, "above_short_side": above}


def unchanged_modules(tensors: pd.DataFrame) -> list[UnchangedRow]:
    """The modules of the tuned side of which every matrix that was compared is identical."""
    are_matrices = (tensors["side"] == "tuned") & (tensors["shape"].map(len) > 1)
    matrices = tensors.loc[are_matrices, ["component", "module", "status"]]
    return [
        UnchangedRow(str(component), str(module), len(rows))
        for (component, module), rows in matrices.groupby(["component", "module"], sort=False)
        if (rows["status"] == "identical").all()
    ]


def _short_sides(inside: pd.DataFrame) -> dict[str, int | None]:
    """The least and the largest number of directions that a matrix has."""
    sides = inside.min(axis=1).dropna()
    if sides.empty:
        return {"short_side_least": None, "short_side_most": None}
    return {"short_side_least": int(sides.min()), "short_side_most": int(sides.max())}


def _ranks(inside: Callable[[str], pd.Series]) -> dict[str, float | None]:
    """Medians of the bounds of the updates' ranks."""
    least, most = rank_bounds(inside)
    return {"rank_least": median(least), "rank_most": median(most)}


def held_rank(column: Callable[[str], pd.Series]) -> NDArray[np.float64]:
    """The rank that each delta has at most: that of its adapter, numerical_rank or, where it is
    low, rank_most.

    numerical_rank alone counts directions of rounding: an exact product of rank 8 that was added in
    F32 has about 60 of 256. A rank_most that is not low, as of a fast spectrum, is no limit that
    anything set. NaN where none is known.
    """
    _, most = rank_bounds(column)
    short = np.minimum(floats(column("rows")), floats(column("cols")))
    most = np.where(most <= LOW * short, most, np.nan)
    return np.fmin(np.fmin(floats(column("rank_ceiling")), floats(column("numerical_rank"))), most)


@np.errstate(all="ignore")  # a forged report may hold infinities
def rank_bounds(
    inside: Callable[[str], pd.Series],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds of the rank of each update, from how much of the stored delta its first directions
    hold: rank_least and rank_most.

    With K = kept, the first k directions hold K + (1 - K) k / m or more if the update has rank k or
    less: rank_least is one more than the largest k of TOPS that do not, or rank_90, rank_95,
    rank_99 where K is above that share. Where its directions stand out of the rounding they hold K
    + (1 - K) k (1/m + 1/n) + (1 - K)^2 k^2 / (m n K) or more (Benaych-Georges & Nadakuditi 2012):
    rank_most is the least k of TOPS that do, or numerical_rank. NaN where K is unknown, below
    LEAST_KEPT or of another difference.
    """
    kept, rows, cols = (floats(inside(name)) for name in ("kept", "rows", "cols"))
    kept = np.where(_are(inside("kept_reason"), "nothing_rounded"), 1.0, kept)
    of_another = _are(inside("kept_history"), "base_rounded")
    kept = np.where(of_another | ~(kept >= LEAST_KEPT), np.nan, kept)
    lost, short = 1.0 - kept, np.minimum(rows, cols)
    slack = NEARLY_KEPT + OF_ROUNDING * kept * lost
    least = np.where(np.isnan(kept), np.nan, 1.0)
    most = np.where(np.isnan(kept), np.nan, floats(inside("numerical_rank")))
    for percent in (90, 95, 99):
        above = kept - slack >= percent / 100
        least = np.where(above, floats(inside(f"rank_{percent}")), least)
    for k in sorted(TOPS, reverse=True):
        energy = floats(inside(f"top{k}_energy"))
        of_low_rank = (
            kept + lost * k * (1 / rows + 1 / cols) + (lost * k) ** 2 / (rows * cols * kept)
        )
        most = np.where(energy >= of_low_rank - slack, np.minimum(most, k), most)
        least = np.where(energy < kept + lost * k / short - slack, np.maximum(least, k + 1), least)
    return least, most


def _are(texts: pd.Series, text: str) -> NDArray[np.bool_]:
    """Which texts are this one, however a frame says that there is none."""
    same: NDArray[np.bool_] = (texts == text).to_numpy(dtype=bool, na_value=False)
    return same


def few_values(deltas: pd.DataFrame) -> list[str]:
    """A sentence for each side of which most matrices have so few distinct values that it went
    through fewer bits.
    """
    told = []
    for side in ("base", "tuned"):
        named = _bits(deltas, side)
        for bits, what in (("INT4", "4 bits"), ("8 bits", "8 bits")):
            count = named.count(bits)
            if count > len(named) / 2:
                told.append(
                    f"{count} of {len(named)} matrices of {side} have as few distinct values in a"
                    f" row as a copy that went through {what} or was pruned, and figures of the"
                    " delta may be those of that copy"
                )
    return told


def _bits(deltas: pd.DataFrame, side: str) -> list[str | None]:
    """What a side's matrices went through, by their distinct values; short rows are left out."""
    rows = deltas[deltas[f"levels_{side}"].notna() & (deltas["cols"] >= SHORTEST)]
    pairs = zip(rows[f"levels_{side}"].astype(float), rows["cols"], strict=True)
    return [round_trip(share, int(cols)) for share, cols in pairs]


def _few(inside: pd.DataFrame) -> dict[str, int]:
    """How many matrices of each side have the distinct values of a copy through 8 or 4 bits, of how
    many.
    """
    counts = {}
    for side in ("base", "tuned"):
        named = _bits(inside, side)
        counts[f"levels_{side}_judged"] = len(named)
        counts[f"levels_{side}_few"] = len(named) - named.count(None)
    return counts
