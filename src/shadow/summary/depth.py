"""Where the update went: its energy over layers, modules and components, and how evenly it lies
there.

The energy of a set of matrices is the sum of ||D||_F² over them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shadow.summary.bootstrap import Counts
from shadow.summary.numbers import are

if TYPE_CHECKING:
    from shadow.summary.columns import Columns

Energies = NDArray[np.float64]
LAYERS = 1000  # numbers below which a chart has room: a tensor's name may claim any


def has_compared(tensors: Columns) -> NDArray[np.bool_]:
    """The tensors of which a matrix was compared with a partner; some of their parts are enough."""
    whole = are(tensors["status"], "measured", "identical")
    return (whole & ~are(tensors["reason"], "only_in_tuned")) | is_partial(tensors)


def is_partial(tensors: Columns) -> NDArray[np.bool_]:
    """The tensors that count as skipped, although some of the matrices in them were compared."""
    are_skipped = are(tensors["status"], "skipped") & ~are(tensors["reason"], "not_a_matrix")
    return np.asarray(are_skipped & (tensors["compared"] > 0))


def compared_layers(tensors: Columns) -> list[tuple[str, int]]:
    """The component and number of every layer of which a matrix was compared."""
    matrices = tensors.where(has_compared(tensors) & ~are(tensors["module"], "norm", "bias"))
    layers = matrices.inside.each("component", "layer")
    return sorted({(component, int(layer)) for component, layer in layers})


def layer_of(
    layers: Sequence[tuple[str, int]], components: Iterable[str], numbers: Iterable[float]
) -> NDArray[np.intp]:
    """The place in layers of the layer of each row, by its component and number, -1 outside."""
    known: dict[tuple[str, float], int] = {place: at for at, place in enumerate(layers)}
    places = zip(components, numbers, strict=True)
    return np.array([known.get(place, -1) for place in places], dtype=np.intp)


@dataclass(frozen=True)
class Sum:
    """A sum over some rows, such as their energy."""

    layers: Energies
    """(layers,): what of it is in each layer."""
    outside: float
    """What of it is outside the layers."""


@np.errstate(divide="ignore", invalid="ignore")
def effective_layers(energies: Energies) -> float:
    """exp(-sum p ln p) with p the share of each layer in the energy, in [1, layers]: how many
    layers hold the update. NaN without energy.
    """
    every = np.ones(len(energies))
    total = every @ energies
    logs = every @ np.where(energies > 0, energies * np.log(energies), 0.0)
    return float(np.minimum(np.exp(np.log(total) - logs / total), len(every)))  # but for rounding


@np.errstate(divide="ignore", invalid="ignore")
def depth_entropy(energies: Energies) -> float:
    """-sum p ln p / ln(layers), in [0, 1]: 1 when all layers have as much; NaN for a single one."""
    return float(np.log(effective_layers(energies)) / np.log(np.float64(len(energies))))


def ratio(part: Sum, whole: Sum, counts: Counts) -> Energies:
    """One sum over another, NaN over 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = (counts @ part.layers + part.outside) / (counts @ whole.layers + whole.outside)
    return np.where(np.isfinite(quotient), quotient, np.nan)
