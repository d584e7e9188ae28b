"""How much purer a delta is than its null, comparable over shapes, from columns of every report.

X = 1 / participation_ratio - 1 / null_participation_ratio. With q_i = sigma_i² / E, 1 /
participation_ratio = sum q², and the null has the same profile with random signs. If D = S + N with
S holding the share f of the energy and N without structure, X = f² (1 / PR_S - 1 / PR_null(S)),
whose second term vanishes as the matrix grows, while concentration goes to 1.
"""

from __future__ import annotations

from shadow.spectra.measurement import Values

NOISE = 5.0  # purity_z up to which X may be noise
# floor_ratio from which one rounding raises 1 / X of the stored delta by about 15 % at most
UNTOUCHED = 4.0
LEAST_KEPT = 0.25  # below it, rounding has taken too much to undo
# share of X that the leading direction has by itself, from which X / kept² may be far off
DOMINATED = 0.7
ENOUGH_KEPT = 0.75  # from here on that error is below 12 %
# share of the energy of the leading direction from which there is little else, and X / kept² holds
# again
ALONE = 0.8


def purity_z(
    purity: float, row_participation_ratio: float, col_participation_ratio: float
) -> float:
    """X over its standard deviation, 2 / (row ratio x column ratio), under a separable null.

    With random signs X is (2 / E²) times a sum over pairs of rows and pairs of columns of products
    of four entries, so its variance is (2 / E²)² times the sum of products of the four squares. Too
    large for profiles of blocks.
    """
    return purity * row_participation_ratio * col_participation_ratio / 2.0


def purity_values(
    of_delta: Values, shape: tuple[int, int], kept: float | None, reason: str | None
) -> Values:
    """excess_purity, purity_z, excess_purity_unrounded, equivalent_directions, from other columns.

    excess_purity_unrounded = X / kept², None where kept is None or below LEAST_KEPT, or one
    direction in noise has most of it (see `dominated`). equivalent_directions = 1 / X of the
    unrounded where there is one. Where kept is unknown it is of the stored delta, if nothing was
    rounded or floor_ratio is from UNTOUCHED on: below, it would be the rounding's. None where
    purity_z <= NOISE, or above the short side. Where kept is of tuned - round(base), all columns
    have to be of that difference.
    """
    names = ("excess_purity", "purity_z", "excess_purity_unrounded", "equivalent_directions")
    real, null, by_row, by_col = (
        of_delta[f"{name}participation_ratio"] for name in ("", "null_", "row_", "col_")
    )
    if real is None or null is None or by_row is None or by_col is None:
        return dict.fromkeys(names)
    purity = 1.0 / real - 1.0 / null
    z = purity_z(purity, by_row, by_col)
    unrounded, best = None, None
    if kept is None:
        floor = of_delta["floor_ratio"]
        if reason == "nothing_rounded" or (floor is not None and floor >= UNTOUCHED):
            best = purity
    elif kept >= LEAST_KEPT and not dominated(purity, kept, of_delta["top1_energy"]):
        unrounded = best = purity / kept**2
    countable = best is not None and z > NOISE and best * min(shape) >= 1.0
    directions = 1.0 / best if countable and best else None
    return dict(zip(names, (purity, z, unrounded, directions), strict=True))


def dominated(purity: float, kept: float, top1_energy: float | None) -> bool:
    """Whether one direction in noise has most of X, where much was rounded away.

    Where its entries are large they pass the rounding better than the noise around them does, so
    that X / kept² comes out too large, by up to a half for rank one with a third of the energy. A
    direction that is nearly all there is does not: then its own entries are what kept was found
    from.
    """
    if top1_energy is None or purity <= 0 or kept >= ENOUGH_KEPT:
        return False
    leading = top1_energy / kept
    return leading < ALONE and top1_energy**2 > DOMINATED * purity
