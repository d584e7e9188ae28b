"""Shares of a stored delta: the update, and the rounding of its storage.

A model is trained in more bits than it is stored in. A stored entry D is the update d rounded to a
grid of step u, the unit in the last place (ulp) of the base's value: a nonlinearity without memory,
so D = a d + an error that is uncorrelated with d (Bussgang 1952). What D shows of d follows from
the distribution of |d| alone, and that is seen through the binades of the base: each has a step of
its own, twice that of the one below, so the counts of |D| in ulps (`rounding_counts`) say the
distribution of |d| (`rounding_model`) at steps from far above it to far below.

All of this assumes the storage model: the base's values lie on the grid, or were rounded to it
first, and |d| does not depend on the base's value within a cell. If the energy and the changes by
binade do not agree with the model, there is a reason instead of a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from shadow.dtypes import FLOATS, FloatFormat
from shadow.spectra.lazy import Updated, is_quantised
from shadow.spectra.measurement import Formats, Values
from shadow.spectra.rounding_model import (
    Counts,
    Fit,
    coarser_grid,
    count,
    fit,
    is_on_grid,
    mean_squares,
    steps,
)
from shadow.spectra.spectrum import Floats, Sides

ROUNDED_AWAY = 0.25  # kept below which corrected figures are null
# floor_ratio from which rounding has a hundredth of the energy, or two, whatever the history
CLEAR = 10.0
# floor_ratio below which D has no rounding of the base in it: that alone has 1
BASE_ROUNDED = 0.8
# floor_ratio from which a change is more than rounding, whether or not its base was rounded
MORE = 2.0
# share of the stored energy in other binades than the model has it; less where kept is such that
# both sides may have been rounded from a master copy, which misfits more at any lower kept
MISFIT = 0.1
OF_MASTER = 0.07
AT_KEPT = (0.88, 0.97)
# mean y⁴ over squared mean y² of entries that the update reaches; 3 if normal, 1 if of one size
TAILED = 4.0
WELL_KEPT = 0.9  # kept from which tails do not matter
REACHED = 0.125  # of the root mean square: |d| below it counts as not reached
# (away - toward) / changed x (1 - kept): decay, whose steps rounding takes away first
LOPSIDED = 0.05
FEWEST = 200  # changed entries that were counted, below which nothing can be held against the model
# energies below it, or above its inverse, have parts that vanish in float64, or overflow
LEAST = 1e-250
FINEST = 0.05  # of the entries, at least: those of the smallest binades
# floor_ratio times the mean chance that a normal update leaves an entry unchanged is at most this
LEFT = math.sqrt(6 / math.pi)
UNEVEN = 0.1  # an excess that is not left to that bound, which holds for updates of one size
ERROR = 0.006  # of a share of the energy from counts

History = Literal["stored_base", "far_above", "nothing_rounded"]
Reason = Literal["nothing_rounded", "rounding_unexplained", "rounded_away", "few_changed"]


@dataclass(frozen=True)
class Undone:
    """Facts about an update before it was stored."""

    # how the tuned side came to its grid; None where none explains the counts
    history: History | None
    # share of the stored energy that is the update's, above 0; None with a reason
    kept: float | None
    reason: Reason | None  # why kept is None; `rounded_away` stands beside a value
    norm: float | None = None  # frobenius norm of the update, in weights
    # share of entries that a normal update of that size leaves unchanged, 0 to 1
    zeros: float | None = None
    # share of the stored energy in other binades than the model has it, 0 to 1
    misfit: float | None = None
    # share of the stored energy that is no multiple of the update by cell, 0 to 1
    noise: float | None = None
    # of the entries on the finest grid: the share that did not change, above that which a normal
    # update leaves, -1 to 1
    zero_excess: float | None = None
    grid: FloatFormat | None = None  # of the tuned side


NOTHING_ROUNDED = Undone("nothing_rounded", None, "nothing_rounded")
UNEXPLAINED = Undone(None, None, "rounding_unexplained")
FEW_CHANGED = Undone(None, None, "few_changed")


def kept_share(fitted: Fit) -> float:
    """The update's share of the stored energy, in (0, 1], from a fitted model.

    In a cell D = a d + error with a = sum D d / sum d², so that a² sum d² is the update's. Purity
    is a sum over products of four entries at two rows and two columns. With cells of energy
    C = a² sum d² it carries over as ||M Mᵀ||_F, M the roots of C, and not as sum C. The two are the
    same where C is a product of rows and columns.
    """
    coherent = coherent_energies(fitted)
    stored = float(fitted.stored.sum())
    update = float(fitted.update.sum())
    after = _paired(coherent) / stored
    before = _paired(fitted.update) / update
    return min(1.0, after / before)


def coherent_energies(fitted: Fit) -> Floats:
    """The energy of a d by cell of a fitted model, with a = sum D d / sum d²."""
    squares = fitted.product**2
    with np.errstate(divide="ignore", invalid="ignore"):
        energies = squares / fitted.update
    return np.where(fitted.update > 0, energies, 0.0)


def _paired(energies: Floats) -> float:
    """||M Mᵀ||_F, where M are the roots of energies."""
    root = np.sqrt(energies)
    return float(np.linalg.norm(root @ root.T))


def misfit(counts: Counts, fitted: Fit) -> float:
    """Sum over binades of |energy stored - energy expected| / energy stored, in [0, 2): stored by
    counts, expected by a fitted model.
    """
    energy = counts.by_binade.energy
    missed = np.abs(fitted.energy - energy)
    return float(missed.sum() / energy.sum())


def tails(shape: Floats) -> float:
    """Mean y⁴ over squared mean y² of the entries that an update reaches.

    shape: of the update, (bins,), as in `Fit`.
    """
    squares = mean_squares()
    least = REACHED**2 * float(squares @ shape)
    reached = np.where(squares >= least, shape, 0.0)
    fourth = reached @ squares**2
    second = reached @ squares
    return float(reached.sum() * fourth / second**2)


def undo_counts(counts: Counts, energy: float) -> Undone:
    """Judge whether the counts of a D of that energy follow the storage model.

    The fit is a gate. The reason is rounding_unexplained if more than MISFIT of the energy is in
    other binades than expected (master copies, stages, means, twice a stored update); if few large
    entries have the energy of cells, so that small ones have another gain; or if changes follow the
    sign of the weights (decay). A part of the update of which nothing was stored, such as the decay
    of rows that no step reached, is not counted.
    """
    changed = counts.away + counts.toward
    if changed < FEWEST:
        return FEW_CHANGED
    fitted = fit(counts)
    normal = fit(counts, rounds=0)
    share = kept_share(fitted)
    wrong = misfit(counts, fitted)
    excess = zero_excess(counts, normal)
    unexplained = replace(UNEXPLAINED, zero_excess=excess, misfit=wrong)
    allowed = MISFIT
    if AT_KEPT[0] < share < AT_KEPT[1]:
        allowed = OF_MASTER
    if wrong > allowed:
        return unexplained
    if tails(fitted.shape) > TAILED and share < WELL_KEPT:
        return unexplained
    imbalance = abs(counts.away - counts.toward) / changed
    if imbalance * (1 - share) > LOPSIDED:
        return unexplained
    reason: Reason | None = None
    if share < ROUNDED_AWAY:
        reason = "rounded_away"
    stored = fitted.stored.sum()
    coherent = float(coherent_energies(fitted).sum() / stored)
    changed_share = float(normal.changed.sum()) / float(counts.entries.sum())
    return replace(
        unexplained,
        history="stored_base",
        kept=share,
        reason=reason,
        norm=math.sqrt(energy * float(fitted.update.sum() / stored)),
        zeros=1.0 - changed_share,
        noise=1.0 - coherent,
    )


def zero_excess(counts: Counts, normal: Fit) -> float:
    """The share of unchanged entries of counts above that of a fitted normal update, among the
    FINEST of the entries on the finest grid: storage hides least there, so that a mask shows.
    """
    entries = counts.by_binade.entries
    changed = counts.by_binade.changed
    and_smaller = np.cumsum(entries[::-1])[::-1]
    smaller = and_smaller - entries
    finest = smaller < FINEST * entries.sum()
    missing = (normal.changed - changed)[finest]
    share = missing.sum() / entries[finest].sum()
    return float(share)


def undo(
    sides: Sides,
    formats: Formats,
    lines: tuple[Floats, Floats],
    largest: float,
    floor_ratio: float | None = None,
) -> Undone:
    """Say what is known about the update between two stored matrices, if their values show that
    one rounding of one side lies between them.

    formats: stored dtypes. lines: energies of tuned - base, (rows,) unscaled, (cols,) in any unit.
    largest: the largest absolute entry of base. Which format a side was rounded to shows in its
    values, as an F32 file may hold BF16 numbers. floor_ratio: the column, of the coarser of the two
    formats; None counts entries whatever it is.

    - an adapter: nothing_rounded;
    - a tuned side of F32 or F64 values over a base of fewer bits: nothing_rounded where D is less
      than what rounding took from the base, or far above it; otherwise rounding_unexplained, as a
      base that was rounded after the training began left its rounding in D;
    - floor_ratio >= CLEAR: far_above, kept = 1 - 1 / floor_ratio²; there is no count of zeros;
    - all base values on the tuned side's grid: stored_base, the storage model of tuned - base;
    - otherwise, for scaled 8-bit floats, and where the energy is 0 or infinite in float64:
      rounding_unexplained.
    """
    base = sides.base
    tuned = sides.tuned
    if isinstance(tuned, Updated):
        return NOTHING_ROUNDED
    energy = float(lines[0].sum())
    rounding = None  # its energy, if D is far above it
    if floor_ratio is not None and floor_ratio >= CLEAR:
        rounding = energy / floor_ratio**2
    if is_quantised(base) or isinstance(base, Updated) or is_quantised(tuned):
        if FLOATS.keys() >= set(formats) or rounding is None:
            return UNEXPLAINED
        return _far_above(energy, rounding)
    name_of_base = coarser_grid(base, formats[0], sides.dtype, sides.space)
    name = coarser_grid(tuned, formats[1], sides.dtype, sides.space)
    grid = FLOATS[name]
    is_finer = grid.mantissa_bits > FLOATS[name_of_base].mantissa_bits
    if is_finer and name in ("F32", "F64"):
        if floor_ratio is None or not BASE_ROUNDED <= floor_ratio < CLEAR:
            return NOTHING_ROUNDED
        return replace(UNEXPLAINED, grid=grid)
    if not 0.0 < energy < math.inf:
        return UNEXPLAINED
    coarser = min(FLOATS[stored].mantissa_bits for stored in formats)
    if rounding is not None and grid.mantissa_bits >= coarser:
        return _far_above(energy, rounding)
    if not LEAST < energy < 1.0 / LEAST:
        return UNEXPLAINED
    is_same_grid = name_of_base == name
    if not is_same_grid and not is_on_grid(base, grid, sides.dtype, sides.space):
        return replace(UNEXPLAINED, grid=grid)
    counts = count(sides, grid, lines, largest)
    squared_ulps = counts.by_binade.entries * steps() ** 2
    error = float(squared_ulps.sum()) * counts.unit**2 / 12
    if energy < CLEAR**2 * error:
        return replace(undo_counts(counts, energy), grid=grid)
    normal = fit(counts, rounds=0)
    excess = zero_excess(counts, normal)
    return replace(_far_above(energy, error), zero_excess=excess, grid=grid)


def _far_above(energy: float, error: float) -> Undone:
    """The verdict if D is so much larger than its rounding that this hardly matters."""
    noise = error / energy
    return Undone(
        history="far_above",
        kept=1.0 - noise,
        reason=None,
        norm=math.sqrt(energy - error),
        noise=noise,
    )


def without_few_levels(undone: Undone, base: str | None, tuned: str | None) -> Undone:
    """Refuse what is undone of a tuned side that went through 8 bits or fewer: the rounding of such
    a copy may compensate for its own errors, as in GPTQ. base and tuned: `levels.round_trip` of
    each side.
    """
    if undone.kept is None or base or not tuned:
        return undone
    return replace(
        UNEXPLAINED,
        misfit=undone.misfit,
        zero_excess=undone.zero_excess,
        grid=undone.grid,
    )


def rounding_share(undone: Undone, floor_ratio: float | None) -> float | None:
    """The share of the stored energy that rounding left, in [0, 1]: by the counts of undone, which
    may be ERROR too low if little was rounded, and at most ulp² / 12 an entry, by floor_ratio. None
    if unknown.
    """
    if undone.noise is None or not floor_ratio:
        return None
    at_most = 1.0 / floor_ratio**2
    return min(undone.noise + ERROR, at_most)


def zero_share_excess(
    undone: Undone, of_delta: Values, count_now: Callable[[], Undone]
) -> float | None:
    """The column, from zero_share and rows_changed in of_delta and, if nothing is counted,
    the size of the rounding in undone. count_now: counts if that is not decisive: updates whose
    sizes differ by row or column leave more entries unchanged than those of one size.
    """
    zeros = of_delta["zero_share"]
    rows = of_delta["rows_changed"]
    excess = undone.zero_excess
    if excess is not None or zeros is None or not rows:
        return excess
    within_rows = 1.0 - (1.0 - zeros) / rows
    if undone.history == "nothing_rounded":
        excess = within_rows
    elif undone.history == "far_above" and undone.noise is not None:
        excess = within_rows - LEFT * math.sqrt(undone.noise)
        if excess > UNEVEN:
            excess = count_now().zero_excess
    return excess


def values(undone: Undone, base_norm: float) -> Values:
    """kept and relative_norm_unrounded, None if too little is kept or base_norm is 0, and
    zero_share_expected, of what is undone.
    """
    relative = None
    if undone.norm and undone.reason is None and base_norm > 0:
        relative = undone.norm / base_norm
    return {
        "kept": undone.kept,
        "relative_norm_unrounded": relative,
        "zero_share_expected": undone.zeros,
    }
