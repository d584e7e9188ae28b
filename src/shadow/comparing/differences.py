"""Two deltas, matrix by matrix -> the differences of figures, over layers. Pure.

Names are the same in columns, JSON and Parquet files: `X_first` and `X_second` are of the two
reports, `X_difference` is the difference on the scale of the figure X.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from functools import reduce
from typing import Any, Literal

import numpy as np

from shadow.comparing.codes import ComparisonVerdict
from shadow.summary.bootstrap import Floats, blocks_of, interval_of_median
from shadow.summary.tables import Columns, finite, is_known, median

EQUAL = 1e-4  # differences below it are those of arithmetic
SIDES = ("first", "second")  # of a contrast: the ends of the columns of its rows


@dataclass(frozen=True)
class ComparedFigure:
    """A figure by which two reports are compared."""

    name: str
    head: str
    """What it is called in a table."""
    columns: tuple[str, ...]
    """The columns that it is made of: its value is the first, or the first over the second."""
    scale: Literal["difference", "log ratio"]
    """Two values differ by first - second, or by ln(first / second)."""
    direction: int
    """+1 where more of it is more concentrated, -1 where less of it is; 0: it does not vote."""
    margin: Literal["same", "power"] | None
    """For a margin M of concentration: `same` is M; `power` is M ln N with N the null participation
    ratio, because at an equal null a concentration M higher means N^M times fewer directions; None:
    it has none.
    """


FIGURES = (
    ComparedFigure("concentration", "concentration", ("concentration",), "difference", 1, "same"),
    ComparedFigure("stable_rank", "stable rank", ("stable_rank",), "log ratio", -1, "power"),
    ComparedFigure("top4_energy", "top-4 energy", ("top4_energy",), "difference", 1, "same"),
    ComparedFigure(
        "participation_ratio_over_null",
        "PR / null PR",
        ("participation_ratio", "null_participation_ratio"),
        "log ratio",
        -1,
        "power",
    ),
    ComparedFigure("spike_energy", "spike energy", ("spike_energy",), "difference", 1, "same"),
    ComparedFigure("relative_norm", "median rel. norm", ("relative_norm",), "log ratio", 0, None),
)


@dataclass(frozen=True)
class Difference:
    """One figure of two reports, over the matrices in layers.

    Numbers are None if no matrix has the figure.
    """

    figure: str
    scale: str
    """difference or log ratio: of difference, low, high and margin."""
    direction: int
    """+1 where more of it is more concentrated, -1 where less of it is; 0: it does not vote."""
    cells: int
    """Matrices, the experts of one module and layer taken as one (their median), 0 or more."""
    layers: int
    first: float | None
    """The median of the figure itself in the first report."""
    second: float | None
    difference: float | None
    low: float | None
    """The lower bound of its interval over layers; None where no_interval says why."""
    high: float | None
    level: float | None
    """The confidence that the interval may claim, 0 to 1."""
    no_interval: str | None
    """Why there is no interval; None where there is one."""
    margin: float | None
    """The least difference that counts, above 0; None for a figure that has none."""
    verdict: ComparisonVerdict | None
    """What this figure alone says; None for one that does not vote."""

    @property
    def points(self) -> int:
        """1 if the whole interval has the first more concentrated, -1 if the second."""
        if self.low is None or self.high is None:
            return 0
        if self.low > 0:
            return self.direction
        if self.high < 0:
            return -self.direction
        return 0

    def as_json(self) -> dict[str, Any]:
        """For machines: the verdict in words, and its code."""
        code = None if self.verdict is None else self.verdict.code
        return {**asdict(self), "verdict_code": code}


def with_differences(matched: Columns) -> Columns:
    """Add X_first, X_second and X_difference of every figure X, and null: ln N of both."""
    added: dict[str, Floats] = {}
    with np.errstate(all="ignore"):
        for figure in FIGURES:
            first, second = (
                reduce(np.divide, (matched[f"{column}_{side}"] for column in figure.columns))
                for side in SIDES
            )
            if figure.scale == "log ratio":
                differences = np.log(first) - np.log(second)
            else:
                differences = first - second
            added[f"{figure.name}_difference"] = differences
            added[f"{figure.name}_first"] = first
            added[f"{figure.name}_second"] = second
        nulls = [np.log(matched[f"null_participation_ratio_{side}"]) for side in SIDES]
        added["null"] = nulls[0] / 2 + nulls[1] / 2
    return matched.added(
        **{name: np.where(np.isfinite(values), values, np.nan) for name, values in added.items()}
    )


def cells_of(matched: Columns) -> Columns:
    """The matrices inside layers, with the experts of a module and layer as one: medians."""
    groups = defaultdict[tuple[str, float, str, str], list[int]](list)
    places = matched.each("component", "layer", "module", "slot", "expert")
    for number, (component, layer, module, slot, expert) in enumerate(places):
        if component is not None and module is not None and not np.isnan(layer):
            # a number has nothing to do with what an expert does, so experts are told apart neither
            # by it nor by name
            cell = slot or "" if np.isnan(expert) else ""
            groups[component, layer, module, cell].append(number)
    keys = sorted(groups)
    firsts = matched.where([groups[key][0] for key in keys])
    arrays = {name: firsts[name] for name in ("component", "layer")}
    names = [f"{figure.name}_{end}" for figure in FIGURES for end in (*SIDES, "difference")]
    for name in [*names, "null"]:
        values = matched[name]
        medians = [median(values[groups[key]]) for key in keys]
        arrays[name] = np.array(medians, dtype=np.float64)
    return Columns(arrays)


def difference(figure: ComparedFigure, cells: Columns, margin: float) -> Difference:
    """Compare a figure. cells: inside layers; margin: that of concentration."""
    column = f"{figure.name}_difference"
    known = cells.where(is_known(cells[column]))
    blocks = blocks_of(known["component"].tolist(), known["layer"])
    interval = interval_of_median(known[column], blocks)
    low, high = interval.bounds or (None, None)
    least: float | None = None
    if figure.margin == "power":
        null = median(known["null"])
        least = None if null is None else finite(margin * null)
    elif figure.margin == "same":
        least = margin
    compared = Difference(
        figure=figure.name,
        scale=figure.scale,
        direction=figure.direction,
        cells=len(known),
        layers=len({*known.each("component", "layer")}),
        first=median(known[f"{figure.name}_first"]),
        second=median(known[f"{figure.name}_second"]),
        difference=median(known[column]),
        low=low,
        high=high,
        level=interval.level,
        no_interval=interval.reason,
        margin=least,
        verdict=None,
    )
    return replace(compared, verdict=_verdict(compared)) if figure.direction else compared


def _verdict(compared: Difference) -> ComparisonVerdict:
    """Judge one figure: it has a direction only beyond 0 and beyond the margin."""
    if compared.difference is None or not compared.points:
        return ComparisonVerdict.NOT_DISTINGUISHED
    size = abs(compared.difference)
    if size < EQUAL:
        return ComparisonVerdict.NOT_DISTINGUISHED
    if compared.margin is None or size < compared.margin:
        return ComparisonVerdict.BELOW_THE_MARGIN
    if compared.difference * compared.direction > 0:
        return ComparisonVerdict.MORE_CONCENTRATED
    return ComparisonVerdict.LESS_CONCENTRATED
