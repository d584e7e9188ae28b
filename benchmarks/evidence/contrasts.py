"""The tables of the lab -> which columns tell narrow from broad data, at equal norm too, and what
else moves concentration. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu

from shadow.lab.design import MAIN, TREATMENTS
from shadow.lab.estimates import NORM, OUTCOME, Estimate, contrast, final, over_bases
from shadow.reports.column_types import null_if_undefined
from shadow.reports.columns import DELTA, SPECTRAL

# Figures of a whole model, beside the medians of columns over the matrices inside layers.
WHOLE = (
    "depth_entropy", "depth_gini", "effective_layers", "attention_to_mlp",
    "reading_participation_ratio",
    "writing_participation_ratio", "reading_participation_ratio_stacked",
    "writing_participation_ratio_stacked",
    "embedding_rows_changed", "embedding_row_participation_ratio",
)  # fmt: skip
# columns that only say how a figure was computed
TECHNICAL = ("layers_sigma_floor", "layers_condition_number")


@dataclass(frozen=True)
class Separation:
    """How far a column tells narrow (B) from broad (C) data; differences are in its unit."""

    column: str
    difference: Estimate
    """B - C at the end."""
    spread: float | None
    """The pooled standard deviation of runs of one regime and base."""
    auc: float | None
    """The share of pairs of runs of one base in which B has more, 0 to 1: the mean over bases."""
    at_norm: Estimate
    """B - C at a relative norm that all runs of a base pass through."""
    auc_at_norm: float | None

    @property
    def in_spreads(self) -> float | None:
        """The difference over the spread, without its sign."""
        return abs(self.difference.value or 0.0) / self.spread if self.spread else None


@dataclass(frozen=True)
class Control:
    """One regime under one treatment: concentration, and what the treatment or dose adds to a
    reference on the bases that have both.
    """

    treatment: str
    regime: str
    kind: str
    runs: int
    relative_norm: float | None
    """The mean of the runs."""
    concentration: Estimate
    change: Estimate
    """The difference of concentration from that of the reference."""


def separation(runs: pd.DataFrame, column: str) -> Separation:
    """B against C, of runs of one scale."""
    last = final(runs)
    at_norm = matched(runs, column)
    spread = last.groupby(["base", "regime"])[column].var().mean()
    return Separation(
        column=column,
        difference=contrast(runs, "B", "C", column=column),
        spread=null_if_undefined(float(np.sqrt(spread))),
        auc=auc_within(last, column),
        at_norm=contrast(at_norm, "B", "C", column=column),
        auc_at_norm=auc_within(at_norm, column),
    )


def separations(runs: pd.DataFrame) -> list[Separation]:
    """Every figure of a run's deltas, those that tell B from C best first: by the AUC, then by the
    difference in units of the spread.
    """

    def rank(separated: Separation) -> tuple[float, float]:
        off = 0.0 if separated.auc is None else abs(separated.auc - 0.5)
        return -off, -(separated.in_spreads or 0.0)

    of_layers = [f"layers_{column.name}" for column in (*SPECTRAL, *DELTA)]
    known = [name for name in (*of_layers, *WHOLE) if name in runs and name not in TECHNICAL]
    return sorted((separation(runs, name) for name in known if runs[name].notna().any()), key=rank)


def auc(runs: pd.DataFrame, column: str) -> float | None:
    """The share of pairs of a run of B and one of C in which B has more; None without a pair."""
    first, second = (
        runs.loc[runs["regime"] == regime, column].dropna().to_numpy(float) for regime in "BC"
    )
    if not len(first) or not len(second):
        return None
    return float(mannwhitneyu(first, second).statistic / (len(first) * len(second)))


def auc_within(runs: pd.DataFrame, column: str) -> float | None:
    """The mean over bases of the AUC of each."""
    areas = [auc(of_base, column) for _, of_base in runs.groupby("base")]
    known = [area for area in areas if area is not None]
    return float(np.mean(known)) if known else None


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
        low = max((path[0, 0] for path in paths.values()), default=np.inf)
        high = min((path[-1, 0] for path in paths.values()), default=0.0)
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


def treatments(runs: pd.DataFrame, scale: str) -> list[Control]:
    """B and C under every treatment, each against AdamW at the scale's rate on the same bases."""
    last = _last(runs, scale)
    return [
        _control(last, regime, reference=regime, treatment=treatment)
        for treatment in TREATMENTS
        for regime in ("B", "C")
        if ((last["treatment"] == treatment) & (last["regime"] == regime)).any()
    ]


def doses(
    runs: pd.DataFrame, scale: str, *, warm: bool = True, reference: str = "A"
) -> list[Control]:
    """Every regime with AdamW, against the reference on the same bases."""
    last = _last(runs, scale, warm=warm)
    trained = last[(last["kind"] == "trained") & (last["treatment"] == "adamw")]
    regimes = trained["regime"].astype(str).unique()
    controls = [_control(last, regime, reference=reference) for regime in regimes]
    return sorted(controls, key=lambda control: -(control.concentration.value or 0.0))


def storage(runs: pd.DataFrame, scale: str) -> list[Control]:
    """Runs with both sides in bf16, and averages of runs, each against the regime's own runs."""
    last = _last(runs, scale)
    made = last[last["kind"].isin(["bf16", "averaged"])][["kind", "regime"]].drop_duplicates()
    return [
        _control(last, regime, reference=regime if regime in MAIN else "C", kind=kind)
        for kind, regime in made.itertuples(index=False)
    ]


def _last(runs: pd.DataFrame, scale: str, *, warm: bool = True) -> pd.DataFrame:
    last = final(runs)
    return last[(last["scale"] == scale) & (last["warm"] == warm) & (last["kind"] != "copied")]


def _control(
    runs: pd.DataFrame,
    regime: str,
    reference: str,
    treatment: str = "adamw",
    kind: str = "trained",
) -> Control:
    """One regime against the trainings of the reference with AdamW."""

    def chosen(regime: str, treatment: str, kind: str) -> pd.DataFrame:
        return runs[
            (runs["regime"] == regime) & (runs["treatment"] == treatment) & (runs["kind"] == kind)
        ]

    treated, against = chosen(regime, treatment, kind), chosen(reference, "adamw", "trained")
    if kind == "bf16":
        against = against[against["seed"] == 0]  # the run that was rounded
    by_base, of_reference = (rows.groupby("base")[OUTCOME].mean() for rows in (treated, against))
    return Control(
        treatment=treatment,
        regime=regime,
        kind=kind,
        runs=len(treated),
        relative_norm=null_if_undefined(float(treated[NORM].astype(float).mean())),
        concentration=over_bases(by_base.to_numpy(float)),
        change=over_bases((by_base - of_reference).dropna().to_numpy(float)),
    )
