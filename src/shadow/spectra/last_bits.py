"""What the last bits of changed entries say: halves go to the even neighbour, as in a mean of two
stored models. Imports nothing that computes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

# relative norm below which a delta that was added in 16 bits leaves few even last bits
NOT_ADDED = 0.03
# shares of even last bits: above the first, one rounding did not leave them; above the second,
# halves were rounded
SOME_EVEN, MANY_EVEN = 0.53, 0.6
EVEN_Z = 6.0  # standard errors
FEWEST_BITS = 200  # changed entries, below which their last bits are not judged


class EvenBits(NamedTuple):
    """Last bits of the changed entries of a tuned side."""

    share: float  # that are even, 0 to 1
    entries: int  # that were looked at, above 0

    @property
    def z(self) -> float:
        """How far the share is above one half, in standard errors."""
        return (2 * self.share - 1) * math.sqrt(self.entries)

    def rounded_halves(self, relative_norm: float) -> bool:
        """Whether one rounding of a change of that relative norm does not leave so many."""
        judged = self.entries >= FEWEST_BITS and relative_norm <= NOT_ADDED
        return judged and self.share > SOME_EVEN and self.z > EVEN_Z
