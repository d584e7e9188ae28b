"""Trainings at several widths -> how every figure moves with the width, and whether a bound carries
over. Pure.

The unit is the base, as in `shadow.lab.estimates`. The rule for a base that counts, and what
"carries over" means, were written down before any decoder wider than 64 was trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from contrasts import auc, auc_within
from shadow.lab.design import MAIN
from shadow.lab.estimates import Estimate, contrast, final, level, main_runs

# A base counts if it gets these shares of answers right: as the ten bases of width 64 do (0.87 and
# 0.72 at least).
WARM = {"original": 0.85, "broad": 0.70}
NARROW = "B"

# runs -> one number a run, on the scale a law is linear in; NaN where a run has none
Value = Callable[[pd.DataFrame], "pd.Series[float]"]


@dataclass(frozen=True)
class WidthFigure:
    """A figure of the spectrum or of the place of an update that may depend on the width."""

    name: str
    text: str
    value: Value


def _column(name: str) -> Value:
    """A column; NaN throughout where the runs are older than it."""
    return lambda runs: runs.get(name, pd.Series(float("nan"), index=runs.index)).astype(float)


def _log(name: str, over: str | None = None) -> Value:
    """The logarithm of a column, or of its ratio to another."""

    def logarithm(runs: pd.DataFrame) -> pd.Series[float]:
        numbers = _column(name)(runs)
        if over is not None:
            numbers = numbers / _column(over)(runs)
        return pd.Series(np.log(numbers.where(numbers > 0).to_numpy(float)), index=runs.index)

    return logarithm


FIGURES: tuple[WidthFigure, ...] = (
    WidthFigure("concentration", "`concentration`, median", _column("layers_concentration")),
    WidthFigure(
        "ln equivalent directions",
        "ln of 1/`excess_purity`, median",
        lambda runs: -_log("layers_excess_purity")(runs),
    ),
    WidthFigure(
        "ln PR over null",
        "ln of `participation_ratio` over its null, median",
        _log("participation_share"),
    ),
    WidthFigure("top-4 energy", "`top4_energy`, median", _column("layers_top4_energy")),
    WidthFigure("top-20 energy", "`top20_energy`, median", _column("layers_top20_energy")),
    WidthFigure("spikes", "`spikes_sharp`, median", _column("layers_spikes_sharp")),
    WidthFigure(
        "ln alignment over null",
        "ln of `alignment_left` over its null, medians",
        _log("layers_alignment_left", "layers_alignment_left_null"),
    ),
    WidthFigure("ln attention to MLP", "ln of `attention_to_mlp`", _log("attention_to_mlp")),
    WidthFigure(
        "ln output over query",
        "ln of the relative norm of `attn.o` over that of `attn.q`",
        _log("allocation_attn.o", "allocation_attn.q"),
    ),
    WidthFigure(
        "ln token coverage",
        "ln of `embedding_row_participation_ratio`",
        _log("embedding_row_participation_ratio"),
    ),
    WidthFigure("relative norm", "`relative_norm`, median", _column("layers_relative_norm")),
)


@dataclass(frozen=True)
class AtWidth:
    """A figure at one width, on its scale."""

    width: int
    regimes: dict[str, Estimate]
    """Its mean over bases by regime."""
    difference: Estimate
    """B - C."""
    in_spreads: float | None
    """The difference over the pooled standard deviation of runs of one base and regime; None with
    one run each.
    """
    auc: float | None
    """The share of pairs of a run of B and one of C in which B has more, 0 to 1, each within its
    base; None without such pairs.
    """


@dataclass(frozen=True)
class LeftOut:
    """What a law fitted without one width says of it."""

    width: int
    broad_error: float
    """Predicted minus measured mean of broad data, on the figure's scale."""
    narrow_error: float
    in_differences: float
    """The larger of the two errors as a share of the measured |B - C|, 0 or more; below a half, a
    bound between the predictions tells the means apart.
    """
    wrong: int
    """Runs that such a bound takes for the other kind, 0 to runs."""
    runs: int


@dataclass(frozen=True)
class FigureLaw:
    """How one figure depends on the width.

    The law: mean = broad + slope log2(width / 64), and `difference` more for narrow data, by least
    squares over the means of the widths.
    """

    figure: WidthFigure
    widths: list[AtWidth]
    """What was measured at each width, in ascending order."""
    broad: float
    """The mean of broad data at width 64."""
    slope: float
    """What a doubling of the width adds."""
    difference: float
    """What narrow data add."""
    auc_pooled: float
    """The share of pairs of a run of B and one of C, of any widths, in which B has more, 0 to 1:
    what a bound without a width would get.
    """
    auc_law: float
    """The same after the slope is taken off."""
    left_out: list[LeftOut]
    """What laws without each width say of it; empty for two widths."""

    @property
    def worst(self) -> LeftOut | None:
        """The width that is predicted worst."""
        return max(self.left_out, key=lambda one: one.in_differences, default=None)

    def means(self, width: int) -> tuple[float, float]:
        """The means of broad and of narrow data that it predicts at a width."""
        broad = self.broad + self.slope * float(np.log2(width / 64))
        return broad, broad + self.difference

    @property
    def carries(self) -> bool:
        """Whether a bound fitted on the other widths tells narrow from broad means at each."""
        return self.worst is not None and self.worst.in_differences < 0.5


def dropped(runs: pd.DataFrame) -> pd.DataFrame:
    """The bases that fail the rule WARM, by width and name: a row of one of its runs each."""
    bases = main_runs(runs).drop_duplicates("base").sort_values(["width", "base"])
    failed = [bases[f"base_{probe}"] < share for probe, share in WARM.items()]
    return bases[pd.concat(failed, axis=1).any(axis=1)]


def counted(runs: pd.DataFrame) -> pd.DataFrame:
    """The last states of A to D from the bases that count."""
    last = final(main_runs(runs))
    return last[~last["base"].isin(dropped(runs)["base"])]


def laws(runs: pd.DataFrame) -> list[FigureLaw]:
    """The law of every figure in the tables `runs` of several widths, put together."""
    last = counted(runs)
    found = []
    for figure in FIGURES:
        values = figure.value(last).replace([np.inf, -np.inf], np.nan)
        valued = last.assign(value=values).dropna(subset=["value"])
        if valued["width"].nunique() > 1:
            found.append(law(figure, valued))
    return found


def law(figure: WidthFigure, runs: pd.DataFrame) -> FigureLaw:
    """The law of one figure, whose values are the column `value`."""
    widths = sorted({int(width) for width in runs["width"]})
    means = _means(runs)
    broad, slope, difference = _fit(means)
    doublings = np.log2(runs["width"].to_numpy(float) / 64)
    without = runs.assign(value=runs["value"] - slope * doublings)
    left_out: list[LeftOut] = []
    if len(widths) > 2:
        left_out = [_leave_out(runs, means, width) for width in widths]
    return FigureLaw(
        figure=figure,
        widths=[_at(runs[runs["width"] == width], width) for width in widths],
        broad=broad,
        slope=slope,
        difference=difference,
        auc_pooled=_number(auc(runs, "value")),
        auc_law=_number(auc(without, "value")),
        left_out=left_out,
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _means(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a width and kind of data (narrow: 0 or 1): the mean over bases of their runs' means."""
    kinds = runs.assign(narrow=(runs["regime"] == NARROW).astype(float))
    by_base = kinds.groupby(["width", "narrow", "base"])["value"].mean()
    return by_base.groupby(["width", "narrow"]).mean().reset_index()


def _fit(means: pd.DataFrame) -> tuple[float, float, float]:
    """(broad at width 64, slope a doubling, what narrow data add), by least squares."""
    doublings = np.log2(means["width"].to_numpy(float) / 64)
    design = np.column_stack([np.ones(len(means)), doublings, means["narrow"].to_numpy(float)])
    solution: NDArray[np.float64] = np.linalg.lstsq(
        design, means["value"].to_numpy(float), rcond=None
    )[0]
    broad, slope, difference = (float(number) for number in solution)
    return broad, slope, difference


def _leave_out(runs: pd.DataFrame, means: pd.DataFrame, width: int) -> LeftOut:
    broad, slope, difference = _fit(means[means["width"] != width])
    predicted = broad + slope * float(np.log2(width / 64))
    own = means[means["width"] == width].set_index("narrow")["value"]
    measured_broad, measured_narrow = float(own.loc[0.0]), float(own.loc[1.0])
    errors = predicted - measured_broad, predicted + difference - measured_narrow
    at_width = runs[runs["width"] == width]
    return LeftOut(
        width=width,
        broad_error=errors[0],
        narrow_error=errors[1],
        in_differences=max(map(abs, errors)) / abs(measured_narrow - measured_broad),
        wrong=wrong_sides(at_width, predicted, difference),
        runs=len(at_width),
    )


def wrong_sides(runs: pd.DataFrame, broad: float, difference: float) -> int:
    """How many runs a bound halfway between two predictions takes for the other kind of data."""
    beyond = np.sign(difference) * (runs["value"] - (broad + difference / 2)) > 0
    return int((beyond != (runs["regime"] == NARROW)).sum())


def _at(runs: pd.DataFrame, width: int) -> AtWidth:
    variances = runs.groupby(["base", "regime"])["value"].var()
    difference = contrast(runs, "B", "C", column="value")
    in_spreads = None
    if variances.notna().any() and difference.value is not None:
        spread = float(np.sqrt(variances.mean()))
        in_spreads = difference.value / spread if spread else None
    return AtWidth(
        width=width,
        regimes={
            regime: estimate for regime, estimate in level(runs, "value").items() if regime in MAIN
        },
        difference=difference,
        in_spreads=in_spreads,
        auc=auc_within(runs, "value"),
    )
