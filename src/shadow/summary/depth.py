"""Where the update went: its energy over layers, modules and components, and how evenly it lies
there.

The energy of a set of matrices is the sum of ||D||_F² over them. Functions of layers take energies
(layers,) and Counts (draws, layers), how often each layer counts, and give one value for each draw:
the figure itself is that of a single draw with every layer once, and
`shadow.summary.bootstrap.interval` takes them as they are.
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


def summed(at: NDArray[np.intp], values: Energies, layers: int) -> Sum:
    """at: the layer of each row, -1 outside."""
    inside = at >= 0
    sums = np.bincount(at[inside], weights=values[inside], minlength=layers)
    return Sum(sums.astype(np.float64), float(values[~inside].sum()))


def once(layers: int) -> Counts:
    """Every layer once: the draw that gives the figure itself."""
    return np.ones((1, layers), dtype=np.int32)


def effective_layers(energies: Energies, counts: Counts) -> Energies:
    """exp(-sum p ln p) with p the share of each layer in the energy, in [1, layers]: how many
    layers hold the update.

    NaN without energy.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        total = counts @ energies
        logs = np.where(energies > 0, energies * np.log(energies), 0.0)
        effective = np.exp(np.log(total) - counts @ logs / total)
        return np.asarray(np.minimum(effective, counts.sum(axis=1)))  # but for rounding


def depth_entropy(energies: Energies, counts: Counts) -> Energies:
    """-sum p ln p / ln(layers), in [0, 1]: 1 when all layers have as much; NaN for a single one."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(effective_layers(energies, counts)) / np.log(counts.sum(axis=1)))


def depth_gini(energies: Energies, counts: Counts) -> Energies:
    """The Gini coefficient of the energies of layers, in [0, 1 - 1/layers]: 0 when all have as
    much.

    1 - sum_i (S_i + S_{i-1}) / (layers S), S_i the sum of the i smallest (Gini 1912). NaN without
    energy.
    """
    order = np.argsort(energies, kind="stable")
    times = counts[:, order]
    upto = np.cumsum(times * energies[order], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        area = (times * (2 * upto - times * energies[order])).sum(axis=1)
        return np.asarray(1.0 - area / (counts.sum(axis=1) * (counts @ energies)))


def ratio(part: Sum, whole: Sum, counts: Counts) -> Energies:
    """One sum over another, NaN over 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = (counts @ part.layers + part.outside) / (counts @ whole.layers + whole.outside)
    return np.where(np.isfinite(quotient), quotient, np.nan)
