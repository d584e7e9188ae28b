"""What became of one matrix pair: a frozen outcome."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shadow.reasons import Status
from shadow.spectra.measurement import Measurement


@dataclass(frozen=True)
class Outcome:
    """What became of one pair; when it was skipped, reason and detail say why.

    delta_norm and base_norm are Frobenius norms (None where there is no base or nothing finite). measurements
    has three entries for a measured matrix pair, one for a matrix without a base, none otherwise. verified says of
    the base's and of the tuned side's bytes whether they were checked against a checksum of the Hub (None: a folder).
    residual is the delta's Gram on the side of the residual stream, as shadow.spectra.residual keeps it.
    """

    key: str
    status: Status
    reason: str | None = None
    detail: str | None = None
    delta_norm: float | None = None
    base_norm: float | None = None
    measurements: tuple[Measurement, ...] = ()
    verified: tuple[bool | None, bool | None] = (None, None)
    residual: NDArray[np.float32] | None = None

    @property
    def deltas(self) -> tuple[Measurement, ...]:
        """The measurement of the delta, if there is one."""
        return tuple(one for one in self.measurements if one.subject == "delta")
