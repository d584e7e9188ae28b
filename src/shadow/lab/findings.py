"""The tables of the lab -> what they show: gains, contrasts, separation at equal norm, controls.
Pure.

The unit is the base: runs of one base share it, so every figure is a mean over bases of what each
says, with a t interval over them (null for one base).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu, t

from shadow.lab.design import MAIN, TREATMENTS
from shadow.lab.results import PROBES, final
from shadow.reports.column_types import null_if_undefined
from shadow.reports.columns import DELTA, SPECTRAL

LEVEL = 0.95
OUTCOME = "layers_concentration"  # chosen before any run
NORM = "layers_relative_norm"
# Figures of a whole model, beside the medians of columns over the matrices inside layers.
WHOLE = (
    "depth_entropy", "depth_gini", "effective_layers", "attention_to_mlp",
    "reading_participation_ratio",
    "writing_participation_ratio", "reading_participation_ratio_stacked",
    "writing_participation_ratio_stacked",
    "embedding_rows_changed", "embedding_row_participation_ratio",
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A mean over bases and its interval at LEVEL, in the unit of what it is of."""

    value: float | None
    """The mean; None over no base."""

    low: float | None
    """The lower bound; None for one base or none."""

    high: float | None
    """The upper bound; None for one base or none."""

    bases: int
    """How many bases it is over, 0 or more."""

    @property
    def excludes_zero(self) -> bool:
        """Whether both bounds lie on one side of 0; False without bounds."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def within(self, margin: float) -> bool:
        """Does the whole interval lie within the margin of 0: as good as no difference."""
        if self.low is None or self.high is None:
            return False
        return -margin < self.low and self.high < margin


@dataclass(frozen=True)
class Separation:
    """How far a column tells narrow (B) from broad (C) data."""

    column: str
    """A column of the table `runs`."""

    difference: Estimate
    """B - C at the end, in the unit of the column."""

    spread: float | None
    """The pooled standard deviation of runs of one regime and base, in the unit of the column."""

    auc: float | None
    """The share of pairs of runs of one base in which B has more, 0 to 1: the mean over bases."""

    at_norm: Estimate
    """B - C at a relative norm that all runs of a base pass through."""

    auc_at_norm: float | None
    """The same share there, 0 to 1."""


@dataclass(frozen=True)
class Control:
    """One regime under one treatment: concentration, and what the treatment or dose adds to a
    reference on the bases that have both.
    """

    treatment: str
    """One of TREATMENTS."""

    regime: str
    """One of REGIMES."""

    kind: str
    """trained, averaged or bf16: see Run.kind."""

    runs: int
    """How many runs, 0 or more."""

    relative_norm: float | None
    """Their mean relative norm, 0 or more."""

    concentration: Estimate
    """Their median concentration."""

    change: Estimate
    """Its difference from that of the reference, over the bases that have both."""


NO_ESTIMATE = Estimate(value=None, low=None, high=None, bases=0)


def over_bases(values: Iterable[float]) -> Estimate:
    """The mean of one value a base, with a t interval."""
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return NO_ESTIMATE
    mean, count = float(np.mean(known)), len(known)
    if count < 2:
        return Estimate(value=mean, low=None, high=None, bases=count)
    half = float(t.ppf((1 + LEVEL) / 2, count - 1) * np.std(known, ddof=1) / np.sqrt(count))
    return Estimate(value=mean, low=mean - half, high=mean + half, bases=count)


def main_runs(runs: pd.DataFrame, scale: str | None = None) -> pd.DataFrame:
    """All states of the regimes A to D with AdamW from warm bases."""
    kept = (
        (runs["kind"] == "trained")
        & (runs["treatment"] == "adamw")
        & runs["regime"].isin(MAIN)
        & runs["warm"]
    )
    main = runs[kept.astype(bool)]
    if scale is None:
        return main
    return main[main["scale"] == scale]


def level(runs: pd.DataFrame, column: str) -> dict[str, Estimate]:
    """The mean of a column by regime."""
    means = runs.groupby(["regime", "base"])[column].mean()
    return {
        str(regime): over_bases(values.to_numpy(float))
        for regime, values in means.groupby("regime")
    }


def gains(runs: pd.DataFrame) -> dict[str, dict[str, Estimate]]:
    """By regime and probe, how much larger a share is right after tuning than before."""
    last = final(runs)
    return {
        probe: level(last.assign(gain=last[f"right_{probe}"] - last[f"base_{probe}"]), "gain")
        for probe in PROBES
    }


def contrast(runs: pd.DataFrame, first: str, second: str, column: str = OUTCOME) -> Estimate:
    """First minus second regime, of the last states."""
    means = final(runs).groupby(["regime", "base"])[column].mean().unstack("regime")
    if not {first, second} <= set(means.columns):
        return NO_ESTIMATE
    return over_bases((means[first] - means[second]).to_numpy(float))


def columns(runs: pd.DataFrame) -> list[str]:
    """Every numeric column of a run's deltas, but those that only say how it was computed."""
    of_layers = [f"layers_{column.name}" for column in (*SPECTRAL, *DELTA)]
    skipped = {"layers_sigma_floor", "layers_condition_number"}
    return [
        name
        for name in (*of_layers, *WHOLE)
        if name in runs and name not in skipped and runs[name].notna().any()
    ]


def separation(runs: pd.DataFrame, column: str) -> Separation:
    """B against C, of runs of one scale."""
    last = final(runs)
    at_norm = matched(runs, column)
    spread = last.groupby(["base", "regime"])[column].var().mean()
    return Separation(
        column=column,
        difference=contrast(runs, "B", "C", column=column),
        spread=null_if_undefined(float(np.sqrt(spread))),
        auc=_auc(last, column),
        at_norm=contrast(at_norm, "B", "C", column=column),
        auc_at_norm=_auc(at_norm, column),
    )


def _auc(runs: pd.DataFrame, column: str) -> float | None:
    areas = []
    for _, of_base in runs.groupby("base"):
        first, second = (
            of_base.loc[of_base["regime"] == regime, column].dropna().to_numpy(float)
            for regime in "BC"
        )
        if len(first) and len(second):
            areas.append(mannwhitneyu(first, second).statistic / (len(first) * len(second)))
    return float(np.mean(areas)) if areas else None


def matched(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Each run's column at one relative norm of its base, interpolated over the logarithm of the
    norm.

    The norm is the geometric middle of what all runs of the base pass through; a base without such
    a norm is left out.
    """
    rows = []
    for base, of_base in runs.groupby("base"):
        paths = {
            key: states.sort_values(NORM)[[NORM, column]].dropna().to_numpy(float)
            for key, states in of_base.groupby(["regime", "seed"])
        }
        paths = {key: path for key, path in paths.items() if len(path) > 1}
        if not paths:
            continue
        low = max(path[0, 0] for path in paths.values())
        high = min(path[-1, 0] for path in paths.values())
        if low > high:
            continue
        middle = np.log(low * high) / 2
        rows += [
            {
                "base": base,
                "regime": regime,
                "seed": seed,
                "share": 1.0,
                column: np.interp(middle, np.log(path[:, 0]), path[:, 1]),
            }
            for (regime, seed), path in paths.items()
        ]
    return pd.DataFrame(rows, columns=["base", "regime", "seed", "share", column])


def separations(runs: pd.DataFrame) -> list[Separation]:
    """Every column, those that tell B from C best first: by the AUC, then by the difference in
    units of the spread.
    """

    def rank(separated: Separation) -> tuple[float, float]:
        off = far = 0.0
        if separated.auc is not None:
            off = abs(separated.auc - 0.5)
        if separated.spread:
            far = abs(separated.difference.value or 0.0) / separated.spread
        return -off, -far

    return sorted((separation(runs, column) for column in columns(runs)), key=rank)


def treatments(runs: pd.DataFrame, scale: str) -> list[Control]:
    """B and C under every treatment, each against AdamW at the scale's rate on the same bases."""
    controlled = _controlled(runs, scale)
    return [
        _control(
            controlled, regime, treatment=treatment, kind="trained", reference=(regime, "adamw")
        )
        for treatment in TREATMENTS
        for regime in ("B", "C")
        if ((controlled["treatment"] == treatment) & (controlled["regime"] == regime)).any()
    ]


def doses(runs: pd.DataFrame, scale: str, *, warm: bool = True) -> list[Control]:
    """Every regime with AdamW, against A on the same bases."""
    controlled = _controlled(runs, scale, warm=warm)
    trained = controlled[(controlled["kind"] == "trained") & (controlled["treatment"] == "adamw")]
    controls = [
        _control(
            controlled, str(regime), treatment="adamw", kind="trained", reference=("A", "adamw")
        )
        for regime in trained["regime"].unique()
    ]
    return sorted(controls, key=lambda control: -(control.concentration.value or 0.0))


def storage(runs: pd.DataFrame, scale: str) -> list[Control]:
    """Runs with both sides in bf16, and averages of runs, each against the regime's own runs."""
    controlled = _controlled(runs, scale)
    rest = controlled[controlled["kind"].isin(["bf16", "averaged"])]
    controls = []
    for kind, regime in rest[["kind", "regime"]].drop_duplicates().itertuples(index=False):
        against = regime if regime in MAIN else "C"
        controls.append(
            _control(controlled, regime, treatment="adamw", kind=kind, reference=(against, "adamw"))
        )
    return controls


def _controlled(runs: pd.DataFrame, scale: str, *, warm: bool = True) -> pd.DataFrame:
    last = final(runs)
    return last[(last["scale"] == scale) & (last["warm"] == warm) & (last["kind"] != "copied")]


def _control(
    runs: pd.DataFrame, regime: str, treatment: str, kind: str, reference: tuple[str, str]
) -> Control:
    treated = runs[
        (runs["regime"] == regime) & (runs["treatment"] == treatment) & (runs["kind"] == kind)
    ]
    against = runs[
        (runs["regime"] == reference[0])
        & (runs["treatment"] == reference[1])
        & (runs["kind"] == "trained")
    ]
    if kind == "bf16":
        against = against[against["seed"] == 0]  # the run that was rounded
    by_base, of_reference = (rows.groupby("base")[OUTCOME].mean() for rows in (treated, against))
    change = (by_base - of_reference).dropna()
    norm = treated[NORM].astype(float).mean()
    return Control(
        treatment=treatment,
        regime=regime,
        kind=kind,
        runs=len(treated),
        relative_norm=null_if_undefined(float(norm)),
        concentration=over_bases(by_base.to_numpy(float)),
        change=over_bases(change.to_numpy(float)),
    )
