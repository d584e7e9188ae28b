"""What became of one matrix pair: a frozen outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shadow.reasons import Status
from shadow.spectra.measurement import Measurement, Order


@dataclass(frozen=True)
class Outcome:
    """What became of one pair of matrices or vectors."""

    key: str
    status: Status
    reason: str | None = None
    """A word of `shadow.reasons`: why it was skipped, or measured alone."""
    detail: str | None = None
    delta_norm: float | None = None
    """Frobenius norm; None where there is no base or nothing finite."""
    base_norm: float | None = None
    """Frobenius norm; None likewise."""
    measurements: tuple[Measurement, ...] = ()
    """Three of a measured matrix pair (base, tuned, delta), one of a matrix without a base, none
    otherwise.
    """
    cast: Literal["tuned", "base", "neither"] | None = None
    """Which side is the other cast to its format, in every entry; None where they are equal, or
    were not compared.
    """
    verified: tuple[bool | None, bool | None] = (None, None)
    """Whether the bytes of base and tuned side agree with a checksum of the Hub; None: a folder."""
    residual: NDArray[np.float32] | None = None
    """The delta's Gram on the side of the residual stream (see `shadow.spectra.residual`)."""
    reordered: Order | None = None
    """What of the tuned matrix is the base's in another order (see `shadow.spectra.reordering`)."""
    seconds: float = field(default=0.0, compare=False)
    """Of one worker."""
    cached: int = field(default=0, compare=False)
    """Spectra that were read from the cache, 0 to 2."""
    grams: Mapping[str, int] = field(default_factory=dict)
    """How many Gram matrices were made where, `cuda` or `cpu: REASON`; empty without a device."""

    @property
    def deltas(self) -> tuple[Measurement, ...]:
        """The measurement of the delta, if there is one."""
        return tuple(
            measurement for measurement in self.measurements if measurement.subject == "delta"
        )
