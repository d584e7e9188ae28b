"""Medians over the matrices inside layers, and separately of embeddings and head.

An embedding has as many entries as many layers have and another spectrum: a median over all
matrices, or a sum, would mix both.
"""

from __future__ import annotations

import numpy as np

from shadow.reports.provenance import SIDES
from shadow.spectra.levels import LEVELS_OF, round_trip
from shadow.spectra.noise import LEAST_KEPT, NOISE, UNTOUCHED
from shadow.summary.bootstrap import Floats, Mask
from shadow.summary.record import AnyRow, InsideLayers, LayerMedians, keys_of
from shadow.summary.tables import (
    Columns,
    are,
    count,
    is_known,
    mask_of,
    median,
    over,
    total_of,
)

LAYER_MEDIANS = keys_of(LayerMedians)
BESIDE = (  # medians of inside_layers beside LAYER_MEDIANS
    "purity_z", "numerical_rank", "rank_90", "spikes", "spike_energy",
    "format_ratio", "kept_low", "kept_high",
)  # fmt: skip
WIDE = {"F16", "F32", "F64"}  # formats of more bits than BF16
SHORTEST = 256  # entries of a row, below which distinct values tell nothing
TOPS = (1, 4, 16, 20, 64)  # directions whose share of the energy is known
NEARLY_KEPT = 0.002  # how far a share of the energy may be from kept where nothing was rounded away
OF_ROUNDING = 0.1  # and how much further for what was, times kept (1 - kept)
LOW = 0.25  # of the short side: what counts as low rank
# Relative norms between which the error of a copy in few bits lies: a rounding to 8 bits leaves
# more than the first, and what rounding takes is less than the weights.
IN_8_BITS = 0.002
NO_ROUNDING = 1.0
# How far rest_over_rounding may be above 1: adapters leave .92 to 1, as their directions take some
# of the rounding with them, and trainings in few directions more where one lies below it. Nothing
# is known where HIDDEN of the update is less than EXACT of what is left.
HIDDEN = 0.03
AS_ROUNDING = 0.01
EXACT = 0.05


def inside_layers(deltas: Columns) -> InsideLayers:
    """Counts of the matrices inside layers and of what is known about them, and medians."""
    inside = deltas.inside
    reasons = inside["kept_reason"]
    purity_z = inside["purity_z"]
    short_sides = _short_sides(inside)
    least, most = rank_bounds(inside)
    formats = [(dtype or "").split("/") for dtype in inside["dtype"]]
    # both sides of which are in files of more bits than BF16
    is_wide = mask_of([WIDE.issuperset(names) for names in formats])
    is_unexplained = are(reasons, "rounding_unexplained")
    has_no_reason = reasons == None  # noqa: E711
    return InsideLayers.from_parts(
        inside.medians(*LAYER_MEDIANS, *BESIDE),
        _coherent(inside),
        _few(inside),
        _kept_range(inside),
        matrices=len(inside),
        known=count(is_known(inside["kept"]) & has_no_reason),
        unexplained=count(is_unexplained),
        rounded_away=count(are(reasons, "rounded_away")),
        few_changed=count(are(reasons, "few_changed")),
        judged=count(is_known(purity_z)),
        beyond_noise=count(purity_z > NOISE),
        flatter_than_noise=count(purity_z < -NOISE),
        rank_least=median(least),
        rank_most=median(most),
        rank_known=count(_is_of_rank(inside)),
        noisy_rest=count(_has_noisy_rest(inside)),
        unexplained_in_more_bits=count(is_unexplained & is_wide),
        in_8_bits=sum("F8" in dtype for dtype in inside["dtype"] if dtype),
        short_side_least=min(short_sides, default=None),
        short_side_most=max(short_sides, default=None),
    )


def _kept_range(rows: Columns) -> dict[str, float | None]:
    """The range of kept of all rows together, weighted by energy, if a side is quantised."""
    kept = rows["kept"]
    has_range = is_known(rows["kept_low"])
    is_untouched = are(rows["kept_reason"], "nothing_rounded")
    known = has_range | is_known(kept) | is_untouched
    if not has_range.any() or 2 * count(known) < len(known):
        return {"kept_low_overall": None, "kept_high_overall": None}
    energy = rows["frobenius_norm"] ** 2
    overall = total_of(energy)
    without_range = np.where(is_untouched, 1.0, kept)
    bounds = {}
    for name, unknown in {"kept_low": 0.0, "kept_high": 1.0}.items():
        shares = np.where(has_range, rows[name], without_range)
        shares = np.where(known, shares, unknown)
        bounds[f"{name}_overall"] = over(total_of(shares * energy), overall)
    return bounds


def by_module(kind: type[AnyRow], deltas: Columns) -> list[AnyRow]:
    """The same medians of each module: OutsideLayers of embeddings, head and projectors, Coherence
    of modules inside.
    """
    modules = []
    for (component, module), rows in deltas.groups("component", "module"):
        row = kind.from_parts(
            rows.medians(*LAYER_MEDIANS),
            _coherent(rows),
            component=component,
            module=module,
            matrices=len(rows),
            short_side=max(_short_sides(rows), default=None),
        )
        modules.append(row)
    return modules


@np.errstate(all="ignore")  # a forged report may hold infinities
def above_short_side(rows: Columns) -> Mask:
    """A mask of the rows without equivalent_directions that are less coherent than a change along
    all directions of their short side alike; for others without it the reason is unknown.
    """
    short = np.minimum(rows["rows"], rows["cols"])
    is_flat = _known_purity(rows) * short < 1.0
    is_above: Mask = np.isnan(rows["equivalent_directions"]) & is_flat
    return is_above


def _known_purity(rows: Columns) -> Floats:
    """X of each row's update; NaN if storage hides it."""
    is_untouched = are(rows["kept_reason"], "nothing_rounded")
    is_as_stored = is_untouched | (rows["floor_ratio"] >= UNTOUCHED)
    is_as_stored &= np.isnan(rows["kept"])
    return np.where(is_as_stored, rows["excess_purity"], rows["excess_purity_unrounded"])


def _coherent(rows: Columns) -> dict[str, float | int | None]:
    """The median of equivalent_directions, and how many exceed their short side.

    Where it is null because it exceeds the short side, 1 / X counts, infinite for a matrix as flat
    as noise or flatter: otherwise the median would be that of the most coherent matrices alone. A
    value above a short side may be below those of larger matrices. The median is None if half of
    the known ones or more are above, or none is known.
    """
    recorded = rows["equivalent_directions"]
    purity = _known_purity(rows)
    is_above = above_short_side(rows)
    directions = np.full(len(purity), np.inf)
    np.divide(1.0, purity, out=directions, where=purity > 0)
    values = np.where(is_above, directions, recorded)
    above = count(is_above)
    is_median_above = 2 * above >= count(is_known(values))
    return {
        "equivalent_directions": None if is_median_above else median(values),
        "above_short_side": above,
        "coherent": count(is_known(recorded)),
    }


def _short_sides(rows: Columns) -> list[int]:
    """The number of directions of each matrix."""
    sides = np.fmin(rows["rows"], rows["cols"])
    return [int(side) for side in sides[is_known(sides)]]


def held_rank(deltas: Columns) -> Floats:
    """The rank of each delta, as far as it exceeds rounding: the least of its adapter's rank,
    numerical_rank and, if low, rank_most.

    numerical_rank alone counts directions of rounding: an exact product of rank 8 that was added in
    F32 has about 60 of 256. A rank_most that is not low, as for fast spectra, is no limit. NaN if
    none is known.
    """
    _, most = rank_bounds(deltas)
    short = np.minimum(deltas["rows"], deltas["cols"])
    low = np.where(most <= LOW * short, most, np.nan)
    ranks: Floats = np.fmin(deltas["rank_ceiling"], deltas["numerical_rank"])
    return np.fmin(ranks, low)


@np.errstate(all="ignore")  # a forged report may hold infinities
def rank_bounds(deltas: Columns) -> tuple[Floats, Floats]:
    """Bounds of the rank of each update, rank_least and rank_most, from how much of the stored
    delta its first directions hold.

    With K = kept, the first k directions hold K + (1 - K) k / m or more if the update has rank k or
    less: rank_least is one more than the largest k of TOPS that do not, or rank_90, rank_95,
    rank_99 where K is above that share. rank_most is rest_rank if the rest is what rounding leaves,
    otherwise numerical_rank. NaN if K is unknown, below LEAST_KEPT or of another difference.
    """
    short = np.minimum(deltas["rows"], deltas["cols"])
    is_untouched = are(deltas["kept_reason"], "nothing_rounded")
    kept = np.where(is_untouched, 1.0, deltas["kept"])
    is_hidden = ~(kept >= LEAST_KEPT) | are(deltas["kept_history"], "base_rounded")
    kept[is_hidden] = np.nan
    lost = 1.0 - kept
    slack = NEARLY_KEPT + OF_ROUNDING * kept * lost
    least = np.where(is_hidden, np.nan, 1.0)
    most = np.where(is_hidden, np.nan, deltas["numerical_rank"])
    for percent in (90, 95, 99):
        holds_more = kept - slack >= percent / 100
        least = np.where(holds_more, deltas[f"rank_{percent}"], least)
    for k in sorted(TOPS, reverse=True):
        of_rank_k = kept + lost * k / short
        holds_less = deltas[f"top{k}_energy"] < of_rank_k - slack
        least = np.where(holds_less, np.maximum(least, k + 1), least)
    has_rank = _is_of_rank(deltas)
    most = np.where(has_rank, np.fmin(most, deltas["rest_rank"]), most)
    least = np.where(has_rank, np.fmin(least, most), least)
    return least, most


def _is_of_rank(deltas: Columns) -> Mask:
    """A mask of the deltas that have rest_rank directions, and otherwise at most what rounding
    leaves. A few changed entries have few directions whatever was trained.
    """
    kept = deltas["kept"]
    lost = 1.0 - kept
    # of the rounding, if it is HIDDEN of the update
    hidden = np.full(len(kept), np.inf)
    np.divide(HIDDEN * kept, lost, out=hidden, where=lost != 0)
    is_exact = np.isnan(kept) | (hidden >= EXACT)
    is_rounding = deltas["rest_over_rounding"] - 1.0 <= AS_ROUNDING
    has_few = are(deltas["kept_reason"], "few_changed")
    has_rank: Mask = is_exact & is_rounding & ~has_few
    return has_rank


@np.errstate(all="ignore")  # a forged report may hold infinities
def _has_noisy_rest(deltas: Columns) -> Mask:
    """A mask of the deltas that are noise as large as the error of a copy in few bits, but for
    directions that may stand out, as of an adapter that was merged onto one.
    """
    rest = deltas["relative_norm"] * np.sqrt(deltas["rest_energy"])
    is_large = (rest >= IN_8_BITS) & (rest <= NO_ROUNDING)
    is_copy: Mask = is_large & (deltas["rest_rank"] >= 0)
    return is_copy


def _few(inside: Columns) -> dict[str, int]:
    """The number of matrices of each side that went through 8 or 4 bits by their distinct values,
    of those with long rows.
    """
    cols = inside["cols"]
    is_long = cols >= SHORTEST
    counts: dict[str, int] = {}
    for side in SIDES:
        levels = inside[f"levels_{side}"]
        # a row of one value, such as zeros, shows no copy
        is_judged = is_long & (levels * np.fmin(cols, LEVELS_OF) > 1.0)
        judged = inside.where(is_judged)
        counts[f"levels_{side}_judged"] = len(judged)
        counts[f"levels_{side}_few"] = count(has_few_levels(judged, side))
    return counts


def has_few_levels(rows: Columns, side: str) -> Mask:
    """A mask of the matrices of a side whose long rows have as few distinct values as a copy's."""
    return mask_of(
        [
            length >= SHORTEST and round_trip(share, int(length)) is not None
            for share, length in rows.each(f"levels_{side}", "cols")
        ]
    )
