"""A report -> a figure of its deltas by layer, beside what independent noise of the same size would
leave there; the steps of a run -> how linear it is by layer, beside a walk.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from shadow.reports.report import Report
from shadow.spectra.line import StepProducts, line_share
from shadow.spectra.noise import noise_effective_rank, shift_by_noise
from shadow.summary.layer_medians import ranked
from shadow.summary.picture import median_of_known
from shadow.targets.families import Pair
from shadow.targets.recipes import LINEARITY, Metric

KINDS = ("measured", "noise", "rounding")  # of figures


@dataclass(frozen=True)
class LayerFigure:
    """A figure of the matrices in one layer."""

    layer: int
    measured: float
    """The median over the layer's matrices; of a run, of all their entries together."""
    noise: float | None
    """The same of independent noise with the Frobenius norm of each delta; of a run, of a walk
    whose steps are its own in random places. None of figures that none is known for.
    """
    rounding: float | None
    """The same of rounding alone: the norm over `floor_ratio`. None too if nothing was rounded."""


@dataclass(frozen=True)
class WholeFigure:
    """A figure of all matrices inside layers together, as its metric says; None where no matrix has
    it.
    """

    measured: float | None
    noise: float | None
    rounding: float | None


@dataclass(frozen=True)
class PairByLayer:
    """The figures of one pair, or of a run as its first and last stage."""

    family: str
    pair: str
    relative_norm: float | None
    """The median over the matrices; None of a run."""
    figures: dict[str, tuple[LayerFigure, ...]]
    """By metric, in the order of the layers; empty where no matrix in a layer changed."""
    whole: dict[str, WholeFigure]

    @property
    def name(self) -> str:
        """`family pair`, for titles and tables."""
        return f"{self.family} {self.pair}"


def by_layer(report: Report, metrics: Sequence[Metric]) -> PairByLayer:
    """The metrics of a report's deltas inside layers, all components together, and all modules
    where a metric names none.
    """
    deltas = report.matrices[report.matrices["subject"] == "delta"]
    inside = deltas[deltas["layer"].notna()]
    bases = {}
    if any(metric.column == "effective_rank_shift" for metric in metrics):
        bases = _base_spectra(report)
    figures, whole = {}, {}
    for metric in metrics:
        parts = [_valued(inside, metric, bases, of) for of in _modules(metric)]
        figures[metric.name] = tuple(_layers(parts))
        whole[metric.name] = _whole(parts, figures[metric.name], metric.mean)
    provenance = report.provenance
    norm = 0.0
    if len(inside):
        norm = float(inside["relative_norm"].median())
    return PairByLayer(provenance.family, provenance.pair, norm, figures, whole)


def run_by_layer(run: Pair, steps: Iterable[tuple[int | None, StepProducts]]) -> PairByLayer:
    """How linear a run is, from the layer and the products of every matrix; without those outside
    layers.
    """
    layers: defaultdict[int, list[StepProducts]] = defaultdict(list)
    for layer, products in steps:
        if layer is not None:
            layers[layer].append(products)
    summed = {layer: StepProducts.summed(layers[layer]) for layer in sorted(layers)}
    figures = []
    for layer, products in summed.items():
        measured = line_share(products.inner)
        if measured is not None:
            figures.append(LayerFigure(layer, measured, line_share(products.by_chance), None))
    whole = WholeFigure(None, None, None)
    if summed:
        every = StepProducts.summed([*summed.values()])
        whole = WholeFigure(line_share(every.inner), line_share(every.by_chance), None)
    told = {LINEARITY: tuple(figures)}
    return PairByLayer(run.family, run.name, None, told, {LINEARITY: whole})


def _modules(metric: Metric) -> tuple[str | None, ...]:
    return (metric.module, metric.over) if metric.over else (None,)


def _base_spectra(report: Report) -> dict[str, NDArray[np.float64]]:
    """The singular values of the base, by the name of the tuned tensor and what of it a row is."""
    spectra = report.spectra
    own = spectra[spectra["subject"] == "base"]
    keys = _keys(own)
    return {key: np.asarray(sigma, float) for key, sigma in zip(keys, own["sigma"], strict=True)}


def _keys(rows: pd.DataFrame) -> list[str]:
    """What tells the matrices of a report apart: one tensor may hold several."""
    columns = [rows[name] for name in ("tensor", "component", "layer", "module", "expert")]
    return ["\t".join(map(str, parts)) for parts in zip(*columns, strict=True)]


def _valued(
    inside: pd.DataFrame, metric: Metric, bases: dict[str, NDArray[np.float64]], module: str | None
) -> pd.DataFrame:
    """The matrices that have the metric, each with its layer, its entries, what is measured, and
    what noise and rounding alone give, NaN where unknown.
    """
    own = inside if module is None else inside[inside["module"] == module]
    own = ranked(own, metric.column)
    own = own[own[metric.column].notna()]
    predict = PREDICTED.get(metric.column)
    if metric.over:
        predict = _of_even_entries if metric.column == "relative_norm" else None
    noise: list[float | None] = [None] * len(own)
    rounding = list(noise)
    if metric.alone:
        noise = [*own[metric.alone].astype(float)]
    elif predict is not None:
        for at, (key, (_, row)) in enumerate(zip(_keys(own), own.iterrows(), strict=True)):
            base, norm, floor = bases.get(key), row["frobenius_norm"], row["floor_ratio"]
            noise[at] = predict(row, base, float(norm))
            if pd.notna(floor) and not metric.over:
                rounding[at] = predict(row, base, float(norm / floor))
    return own[["layer"]].assign(
        entries=own["rows"].astype(float) * own["cols"].astype(float),
        measured=own[metric.column].astype(float),
        noise=np.array(noise, float),
        rounding=np.array(rounding, float),
    )


def _layers(parts: Sequence[pd.DataFrame]) -> list[LayerFigure]:
    """The medians by layer; the first part's over the second's where there are two."""
    first, *second = [part.groupby("layer")[list(KINDS)].median() for part in parts]
    for divisor in second:
        first = (first / divisor).dropna(subset=["measured"])
    return [
        LayerFigure(
            int(str(layer)), float(row["measured"]), _known(row["noise"]), _known(row["rounding"])
        )
        for layer, row in first.iterrows()
        if math.isfinite(row["measured"])  # else above the short side in half of the matrices
    ]


@np.errstate(all="ignore")
def _whole(
    parts: Sequence[pd.DataFrame], layers: Sequence[LayerFigure], mean: str | None
) -> WholeFigure:
    if mean is None:
        return WholeFigure(
            *(median_of_known(getattr(one, kind) for one in layers) for kind in KINDS)
        )
    figures = []
    for kind in KINDS:
        first, *second = [_mean(part, kind, mean) for part in parts]
        for divisor in second:
            first = first / divisor
        figures.append(_known(first))
    return WholeFigure(*figures)


def _mean(part: pd.DataFrame, kind: str, mean: str) -> np.float64:
    """Over the matrices that have it, or over their entries; NaN over none."""
    known = part[part[kind].notna()]
    weights = known["entries"] if mean == "entries" else known["entries"] ** 0
    return np.float64((known[kind] * weights).sum()) / np.float64(weights.sum())


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _shift_of_noise(
    row: pd.Series[float], base: NDArray[np.float64] | None, norm: float
) -> float | None:
    if base is None:  # an audit with --no-spectra
        return None
    return shift_by_noise(base, int(row["rows"]), cols=int(row["cols"]), norm=norm)


def _of_even_entries(
    row: pd.Series[float], base: NDArray[np.float64] | None, norm: float
) -> float | None:
    """The relative norm of a delta of which every entry has the size 1: its ratio of two modules is
    what entries of one size in both give.
    """
    if not norm:
        return None
    return float(row["relative_norm"]) / norm * math.sqrt(row["rows"] * row["cols"])


PREDICTED: dict[
    str, Callable[[pd.Series[float], NDArray[np.float64] | None, float], float | None]
] = {
    "effective_rank": lambda row, _, __: noise_effective_rank(int(row["rows"]), int(row["cols"])),
    "effective_rank_shift": _shift_of_noise,
    "numerical_rank": lambda row, _, __: float(min(row["rows"], row["cols"])),
}
