"""What became of one matrix pair: a frozen outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shadow.reasons import Status
from shadow.spectra.measurement import Measurement


@dataclass(frozen=True)
class Outcome:
    """What became of one pair of matrices or vectors."""

    key: str
    """The key of the pair."""

    status: Status
    """measured, identical or skipped."""

    reason: str | None = None
    """A word of `shadow.reasons` that says why it was skipped, or measured alone."""

    detail: str | None = None
    """More, for people."""

    delta_norm: float | None = None
    """The Frobenius norm of the delta, 0 or more; None where there is no base or nothing finite."""

    base_norm: float | None = None
    """That of the base, 0 or more; None likewise."""

    measurements: tuple[Measurement, ...] = ()
    """Three of a measured matrix pair (base, tuned, delta), one of a matrix without a base, none
    otherwise.
    """

    verified: tuple[bool | None, bool | None] = (None, None)
    """Of the base's and of the tuned side's bytes: were they checked against a checksum of the Hub?
    None: a folder.
    """

    residual: NDArray[np.float32] | None = None
    """The delta's Gram on the side of the residual stream, as `shadow.spectra.residual` keeps it.
    """

    seconds: float = field(default=0.0, compare=False)
    """How long one worker took for it, 0 or more."""

    cached: int = field(default=0, compare=False)
    """Spectra of it that were not solved but read from the cache, 0 to 2."""

    grams: Mapping[str, int] = field(default_factory=dict)
    """Where a device is used, how many Gram matrices were made where: `cuda`, and `cpu: REASON`;
    otherwise empty.
    """

    @property
    def deltas(self) -> tuple[Measurement, ...]:
        """The measurement of the delta, if there is one."""
        return tuple(
            measurement for measurement in self.measurements if measurement.subject == "delta"
        )
