"""How well a straight line tells the path of matrices over stages at even steps.

R² of all entries together follows from the inner products of the steps alone. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class StepProducts:
    """<D_s, D_t> of the steps between stages, of one matrix or summed over several, in weights²."""

    inner: Array
    """Of the steps as they are, one row and column a step."""
    by_chance: Array
    """Their mean if every step had its entries in random places: the products of different steps
    are those of their sums, over the entries.
    """

    @classmethod
    def summed(cls, products: Sequence[StepProducts]) -> StepProducts:
        """Of one matrix or more together."""
        return cls(
            np.sum([one.inner for one in products], axis=0),
            np.sum([one.by_chance for one in products], axis=0),
        )

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.inner).all())


def line_share(inner: Array) -> float | None:
    """R² of a straight line through the stages: the share of their squared distances from their
    mean that it explains, 0 to 1; None where nothing moved.

    inner: the inner products of the steps. Steps of one size that have nothing to do with one
    another give .6 (n² + 1) / (n² - 1) with n stages: .75 with three, .6 with many.
    """
    steps = len(inner)
    times = np.arange(steps + 1) - steps / 2
    path = np.tri(steps + 1, steps, -1)  # which steps came before each stage
    centred = path - path.mean(axis=0)
    total = float(((centred.T @ centred) * inner).sum())
    if total <= 0:
        return None
    slope = times @ path
    return min(1.0, float(slope @ inner @ slope) / float(times @ times) / total)
