"""Medians over the matrices inside layers, and separately of embeddings and head.

An embedding has as many entries as many layers have and another spectrum: a median over all
matrices, or a sum, would mix both.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shadow.spectra.levels import LEVELS_OF, round_trip
from shadow.spectra.noise import LEAST_KEPT, NOISE, UNTOUCHED
from shadow.summary.bootstrap import Floats, Mask
from shadow.summary.record import AnyRow, InsideLayers, LayerMedians, keys_of
from shadow.summary.tables import Columns, are, floats, median, over, total_of

if TYPE_CHECKING:
    import pandas as pd


LAYER_MEDIANS = keys_of(LayerMedians)
BESIDE = (  # medians of inside_layers beside LAYER_MEDIANS
    "purity_z", "numerical_rank", "rank_90", "spikes", "spike_energy",
    "format_ratio", "kept_low", "kept_high",
)  # fmt: skip
POOLER = re.compile(r"\bpooler\b")
SHORTEST = 256  # entries of a row, below which distinct values tell nothing
TOPS = (1, 4, 16, 20, 64)  # directions whose share of the energy is known
NEARLY_KEPT = 0.002  # how far a share of the energy may be from kept where nothing was rounded away
LOW = 0.25  # of the short side: what counts as low rank
# Relative norms between which the error of a copy in few bits lies: a rounding to 8 bits leaves
# more than the first, and what rounding takes is less than the weights.
IN_8_BITS, NO_ROUNDING = 0.002, 1.0
OF_ROUNDING = 0.1  # and how much further for what was, times kept (1 - kept)
# How far rest_over_rounding may be above 1: adapters leave .92 to 1, as their directions take some
# of the rounding with them, and trainings in few directions more where one lies below it. Nothing
# is known where HIDDEN of the update is less than EXACT of what is left.
HIDDEN, AS_ROUNDING, EXACT = 0.03, 0.01, 0.05
# gives a column of some rows by its name
Column = Callable[[str], "pd.Series | NDArray[Any]"]


def inside_layers(deltas: Columns) -> InsideLayers:
    """Return counts of matrices and of what is known about them, and medians."""
    inside = deltas.inside
    reason, z, formats = inside["kept_reason"], inside["purity_z"], inside["dtype"]
    sides = _short_sides(inside)
    least, most = rank_bounds(inside.__getitem__)
    unexplained = are(reason, "rounding_unexplained")
    wide = [set((one or "").split("/")) <= {"F16", "F32", "F64"} for one in formats]
    return InsideLayers.from_parts(
        inside.medians(*LAYER_MEDIANS, *BESIDE),
        _coherent(inside),
        _few(inside),
        _kept_range(inside),
        matrices=len(inside),
        known=int((~np.isnan(inside["kept"]) & (reason == None)).sum()),  # noqa: E711
        unexplained=int(unexplained.sum()),
        rounded_away=int(are(reason, "rounded_away").sum()),
        few_changed=int(are(reason, "few_changed").sum()),
        judged=int(np.count_nonzero(~np.isnan(z))),
        beyond_noise=int((z > NOISE).sum()),
        flatter_than_noise=int((z < -NOISE).sum()),
        rank_least=median(least),
        rank_most=median(most),
        rank_known=int(_is_of_rank(inside.__getitem__).sum()),
        noisy_rest=int(_has_noisy_rest(inside).sum()),
        # both sides of which are in files of more bits than BF16
        unexplained_in_more_bits=int((unexplained & np.array(wide, dtype=np.bool_)).sum()),
        in_8_bits=sum("F8" in one for one in formats if one),
        short_side_least=min(sides, default=None),
        short_side_most=max(sides, default=None),
    )


def _kept_range(rows: Columns) -> dict[str, float | None]:
    """Return the range of kept of all rows together, weighted by energy, if a side is quantised."""
    ranged, kept = ~np.isnan(rows["kept_low"]), rows["kept"]
    untouched = are(rows["kept_reason"], "nothing_rounded")
    known = ranged | ~np.isnan(kept) | untouched
    if not ranged.any() or 2 * known.sum() < len(known):
        return dict.fromkeys(("kept_low_overall", "kept_high_overall"))
    energy, found = rows["frobenius_norm"] ** 2, {}
    for name, unknown in (("kept_low", 0.0), ("kept_high", 1.0)):
        each = np.where(ranged, rows[name], np.where(untouched, 1.0, kept))
        each = np.where(known, each, unknown)
        found[f"{name}_overall"] = over(total_of(each * energy), total_of(energy))
    return found


def by_module(kind: type[AnyRow], deltas: Columns) -> list[AnyRow]:
    """The same medians of each module: OutsideLayers of embeddings, head and projectors, Coherence
    of modules inside.
    """
    return [
        kind.from_parts(
            rows.medians(*LAYER_MEDIANS),
            _coherent(rows),
            component=component,
            module=module,
            matrices=len(rows),
            short_side=max(_short_sides(rows), default=None),
            poolers=sum(POOLER.search(name) is not None for name in rows["tensor"] if name),
        )
        for (component, module), rows in deltas.groups("component", "module")
    ]


def ranked(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Prepare a column for medians in tables: infinite where equivalent_directions exceeds the
    short side. Medians may be infinite, which is not a number to show.
    """
    if metric != "equivalent_directions":
        return rows
    above = above_short_side(rows.__getitem__)
    recorded = floats(rows["equivalent_directions"])
    return rows.assign(equivalent_directions=np.where(above, np.inf, recorded))


@np.errstate(all="ignore")  # a forged report may hold infinities
def above_short_side(column: Column) -> Mask:
    """Return which rows have no equivalent_directions because they are less coherent than a change
    along all directions of their short side alike; for others without it the reason is unknown.
    """
    recorded, rows, cols = (
        floats(column(name)) for name in ("equivalent_directions", "rows", "cols")
    )
    above: Mask = np.isnan(recorded) & (_known_purity(column) * np.minimum(rows, cols) < 1.0)
    return above


def _known_purity(column: Column) -> Floats:
    """Return X of each row's update; NaN if storage hides it."""
    kept, stored, undone, floor = (
        floats(column(name))
        for name in ("kept", "excess_purity", "excess_purity_unrounded", "floor_ratio")
    )
    as_stored = are(column("kept_reason"), "nothing_rounded") | (floor >= UNTOUCHED)
    return np.where(np.isnan(kept) & as_stored, stored, undone)


def _coherent(rows: Columns) -> dict[str, float | int | None]:
    """Return the median of equivalent_directions, and how many exceed their short side.

    Where it is null because it exceeds the short side, 1 / X counts, infinite for a matrix as flat
    as noise or flatter: otherwise the median would be that of the most coherent matrices alone. A
    value above a short side may be below those of larger matrices. The median is None if half of
    the known ones or more are above, or none is known.
    """
    recorded, purity = rows["equivalent_directions"], _known_purity(rows.__getitem__)
    above = above_short_side(rows.__getitem__)
    directions = np.divide(1.0, purity, out=np.full(len(purity), np.inf), where=purity > 0)
    values = np.where(above, directions, recorded)
    is_median_above = 2 * above.sum() >= np.count_nonzero(~np.isnan(values))
    return {
        "equivalent_directions": None if is_median_above else median(values),
        "above_short_side": int(above.sum()),
        "coherent": int(np.count_nonzero(~np.isnan(recorded))),
    }


def _short_sides(rows: Columns) -> list[int]:
    """Return how many directions each matrix has."""
    sides = np.fmin(rows["rows"], rows["cols"])
    return [int(side) for side in sides[~np.isnan(sides)]]


def held_rank(column: Column) -> Floats:
    """Return the rank of each delta, as far as it exceeds rounding: the least of its adapter's
    rank, numerical_rank and, if low, rank_most.

    numerical_rank alone counts directions of rounding: an exact product of rank 8 that was added in
    F32 has about 60 of 256. A rank_most that is not low, as for fast spectra, is no limit. NaN if
    none is known.
    """
    _, most = rank_bounds(column)
    short = np.minimum(floats(column("rows")), floats(column("cols")))
    most = np.where(most <= LOW * short, most, np.nan)
    return np.fmin(np.fmin(floats(column("rank_ceiling")), floats(column("numerical_rank"))), most)


@np.errstate(all="ignore")  # a forged report may hold infinities
def rank_bounds(inside: Column) -> tuple[Floats, Floats]:
    """Return bounds of the rank of each update, rank_least and rank_most, from how much of the
    stored delta its first directions hold.

    With K = kept, the first k directions hold K + (1 - K) k / m or more if the update has rank k or
    less: rank_least is one more than the largest k of TOPS that do not, or rank_90, rank_95,
    rank_99 where K is above that share. rank_most is rest_rank if the rest is what rounding leaves,
    otherwise numerical_rank. NaN if K is unknown, below LEAST_KEPT or of another difference.
    """
    kept, rows, cols = (floats(inside(name)) for name in ("kept", "rows", "cols"))
    kept = np.where(are(inside("kept_reason"), "nothing_rounded"), 1.0, kept)
    of_another = are(inside("kept_history"), "base_rounded")
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
        least = np.where(energy < kept + lost * k / short - slack, np.maximum(least, k + 1), least)
    is_known = _is_of_rank(inside)
    most = np.where(is_known, np.fmin(most, floats(inside("rest_rank"))), most)
    return np.where(is_known, np.fmin(least, most), least), most


def _is_of_rank(inside: Column) -> Mask:
    """Return which deltas have rest_rank directions, and otherwise at most what rounding leaves. A
    few changed entries have few directions whatever was trained.
    """
    kept = floats(inside("kept"))
    lost = 1.0 - kept
    # of the rounding, if it is HIDDEN of the update
    hidden = np.divide(HIDDEN * kept, lost, out=np.full(len(kept), np.inf), where=lost != 0)
    hidden = np.where(np.isnan(kept), EXACT, hidden)
    as_rounding = floats(inside("rest_over_rounding")) - 1.0 <= AS_ROUNDING
    few = are(inside("kept_reason"), "few_changed")
    known: Mask = (hidden >= EXACT) & as_rounding & ~few
    return known


@np.errstate(all="ignore")  # a forged report may hold infinities
def _has_noisy_rest(inside: Columns) -> Mask:
    """Return which deltas are noise as large as the error of a copy in few bits, but for directions
    that may stand out, as of an adapter that was merged onto one.
    """
    rest = inside["relative_norm"] * np.sqrt(inside["rest_energy"])
    found: Mask = (inside["rest_rank"] >= 0) & (rest >= IN_8_BITS) & (rest <= NO_ROUNDING)
    return found


def _few(inside: Columns) -> dict[str, int]:
    """Return how many matrices of each side went through 8 or 4 bits by their distinct values, and
    of how many with long rows.
    """
    counts: dict[str, int] = {}
    for side in ("base", "tuned"):
        levels, cols = inside[f"levels_{side}"], inside["cols"]
        # a row of one value, such as zeros, shows no copy
        judged = (levels * np.fmin(cols, LEVELS_OF) > 1.0) & (cols >= SHORTEST)
        shares = zip(levels[judged].tolist(), cols[judged].tolist(), strict=True)
        few = [round_trip(share, int(length)) is not None for share, length in shares]
        counts |= {f"levels_{side}_judged": len(few), f"levels_{side}_few": sum(few)}
    return counts
