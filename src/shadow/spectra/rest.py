"""How many directions of a delta stand out of a rest that is like noise.

An adapter that was merged and stored is a few directions and the rounding of its storage, whose
singular values are those of noise on the grid of the weights. The rest of a full update has
structure of its own, however little energy it has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shadow.spectra.edge import sharp_edge
from shadow.spectra.measurement import Values
from shadow.spectra.rounding_counts import Floats
from shadow.spectra.spectrum import Spectrum

NOTHING = 1e-6  # share of the energy that counts as no rest at all
MOST = 0.5  # of the short side that may stand out
STEPS = 50  # of the search for the number that stand out
ALIKE = 0.1  # how far the participation ratio of the rest may be from that of noise


@dataclass(frozen=True)
class Rest:
    """The singular values of a delta beyond those that stand out of it."""

    directions: int  # that stand out, 0 or more
    energy: float  # of the rest: its share of the energy, 0 to 1


def noise_like_rest(delta: Spectrum, rows: Floats, cols: Floats) -> Rest | None:
    """The least number of directions beyond which a delta is like noise; None where there is none
    up to half of the short side.

    rows, cols: where noise of storage lies, sums of squared ulps by row and by column, in any unit.
    The rest is like noise if no singular value of it is above the edge of noise of its energy, and
    its participation ratio is that of noise: both for this profile, without the directions that
    stand out.
    """
    squares = (delta.sigma / delta.sigma[0]) ** 2
    m = len(squares)
    beyond = np.append(np.cumsum(squares[::-1])[::-1], 0.0)  # energy from each direction on
    total = float(beyond[0])
    found = int(np.searchsorted(-beyond, -NOTHING * total))
    if found <= MOST * m:
        return Rest(found, float(beyond[found]) / total)
    profile = float(rows.sum())
    rows, cols = rows / profile, cols / profile
    unit = sharp_edge(rows, cols) * (1.0 + m ** (-2 / 3))
    k = 0
    for _ in range(STEPS):
        whole = float(beyond[k]) / ((1 - k / len(rows)) * (1 - k / len(cols)))
        above = int(np.count_nonzero(squares > whole * unit**2))
        if above <= k:
            break
        k = above
        if k > MOST * m:
            return None
    rest, fourth = float(beyond[k]), float((squares[k:] ** 2).sum())
    if rest <= 0 or fourth <= 0:
        return None
    flat = float((rows**2).sum()) / (1 - k / len(rows)) + float((cols**2).sum()) / (
        1 - k / len(cols)
    )
    if abs(fourth / rest**2 / flat - 1.0) > ALIKE:
        return None
    return Rest(k, rest / total)


def rest_values(found: Rest | None, noise: float | None, shape: tuple[int, int]) -> Values:
    """rest_rank, rest_energy, rest_over_rounding.

    noise: the share of the energy that rounding left, None where it is unknown. Noise in as many
    directions as the rest has holds (1 - k / rows) (1 - k / cols) of its energy. Where there is
    nothing to speak of in the rest, it is no more than rounding.
    """
    if found is None:
        return dict.fromkeys(("rest_rank", "rest_energy", "rest_over_rounding"))
    k, ratio = found.directions, None
    if found.energy <= NOTHING:
        ratio = 0.0
    elif noise is not None and noise > 0:
        ratio = found.energy / (noise * (1 - k / shape[0]) * (1 - k / shape[1]))
    return {"rest_rank": k, "rest_energy": found.energy, "rest_over_rounding": ratio}
