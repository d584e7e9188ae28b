"""A report -> a figure of its deltas by layer, beside what independent noise of the same size would
leave there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from shadow.reports.report import Report
from shadow.spectra.noise import noise_effective_rank, shift_by_noise
from shadow.summary.layer_medians import ranked
from shadow.summary.picture import median_of_known

HEADS = ("measured", "noise alone", "rounding alone")  # of what medians returns


@dataclass(frozen=True)
class LayerFigure:
    """A figure of the matrices in one layer."""

    layer: int
    measured: float
    """The median over the layer's matrices."""
    noise: float | None
    """The same of independent noise with the Frobenius norm of each delta; None of figures that
    none is known for.
    """
    rounding: float | None
    """The same of rounding alone: the norm over `floor_ratio`. None too if nothing was rounded."""


@dataclass(frozen=True)
class PairByLayer:
    """The figures of one pair."""

    family: str
    pair: str
    relative_norm: float
    """The median over the matrices."""
    figures: dict[str, tuple[LayerFigure, ...]]
    """By metric, in the order of the layers; empty where no matrix in a layer changed."""

    @property
    def name(self) -> str:
        """`family pair`, for titles and tables."""
        return f"{self.family} {self.pair}"


def by_layer(report: Report, metrics: Sequence[str]) -> PairByLayer:
    """The metrics of a report's deltas inside layers, all components and modules together."""
    deltas = report.matrices[report.matrices["subject"] == "delta"]
    inside = deltas[deltas["layer"].notna()]
    bases = {}
    if "effective_rank_shift" in metrics:
        bases = _base_spectra(report)
    figures = {metric: tuple(_layers(inside, metric, bases)) for metric in metrics}
    provenance = report.provenance
    norm = 0.0
    if len(inside):
        norm = float(inside["relative_norm"].median())
    return PairByLayer(
        family=provenance.family, pair=provenance.pair, relative_norm=norm, figures=figures
    )


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


def _layers(
    inside: pd.DataFrame, metric: str, bases: dict[str, NDArray[np.float64]]
) -> list[LayerFigure]:
    predict = PREDICTED.get(metric)
    figures = []
    inside = ranked(inside, metric)
    valued = inside[inside[metric].notna()]
    for layer, rows in valued.groupby("layer"):
        measured = float(rows[metric].astype(float).median())
        if math.isinf(measured):  # above the short side in half of the matrices or more
            continue
        noise: list[float | None] = []
        rounding: list[float | None] = []
        if predict is not None:
            for key, (_, row) in zip(_keys(rows), rows.iterrows(), strict=True):
                base, norm, floor = bases.get(key), row["frobenius_norm"], row["floor_ratio"]
                noise.append(predict(row, base, float(norm)))
                if pd.notna(floor):
                    rounding.append(predict(row, base, float(norm / floor)))
        figures.append(
            LayerFigure(
                layer=int(str(layer)),
                measured=measured,
                noise=median_of_known(noise),
                rounding=median_of_known(rounding),
            )
        )
    return figures


def _rank_of_noise(
    row: pd.Series[float], base: NDArray[np.float64] | None, norm: float
) -> float | None:
    return noise_effective_rank(int(row["rows"]), int(row["cols"]))


def _shift_of_noise(
    row: pd.Series[float], base: NDArray[np.float64] | None, norm: float
) -> float | None:
    if base is None:  # an audit with --no-spectra
        return None
    return shift_by_noise(base, int(row["rows"]), cols=int(row["cols"]), norm=norm)


def _zeros_of_noise(
    row: pd.Series[float], base: NDArray[np.float64] | None, norm: float
) -> float | None:
    """What is known is known of the whole delta: rounding alone has no size of its own."""
    known = norm == row["frobenius_norm"] and pd.notna(row["zero_share_expected"])
    return float(row["zero_share_expected"]) if known else None


PREDICTED: dict[
    str, Callable[[pd.Series[float], NDArray[np.float64] | None, float], float | None]
] = {
    "effective_rank": _rank_of_noise,
    "effective_rank_shift": _shift_of_noise,
    "zero_share": _zeros_of_noise,
}


def medians(layers: Sequence[LayerFigure]) -> tuple[float | None, float | None, float | None]:
    """Measured, by noise alone, by rounding alone: medians over layers; None without any."""
    return (
        median_of_known(figure.measured for figure in layers),
        median_of_known(figure.noise for figure in layers),
        median_of_known(figure.rounding for figure in layers),
    )
