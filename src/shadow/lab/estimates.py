"""The tables of the lab -> means over bases with their intervals, and differences of regimes. Pure.

The unit is the base: runs of one base share it, so every figure is a mean over bases of what each
says, with a t interval over them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import t

from shadow.lab.design import MAIN, PROBES

LEVEL = 0.95
OUTCOME = "layers_concentration"  # chosen before any run
NORM = "layers_relative_norm"


@dataclass(frozen=True)
class Estimate:
    """A mean over bases and its interval at LEVEL, in the unit of what it is of.

    The mean is None over no base, the bounds are None for one base or none.
    """

    value: float | None
    low: float | None
    high: float | None
    bases: int


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


def main_runs(
    runs: pd.DataFrame, scale: str | None = None, regimes: Collection[str] = MAIN
) -> pd.DataFrame:
    """All states of the main regimes with AdamW from warm bases, of every scale or of one."""
    main = runs[
        (runs["kind"] == "trained")
        & (runs["treatment"] == "adamw")
        & runs["regime"].isin(list(regimes))
        & runs["warm"].astype(bool)
    ]
    return main if scale is None else main[main["scale"] == scale]


def final(runs: pd.DataFrame) -> pd.DataFrame:
    """The last state of every run."""
    return runs[runs["share"] == 1.0]


def level(runs: pd.DataFrame, column: str) -> dict[str, Estimate]:
    """The mean of a column by regime."""
    means = runs.groupby(["regime", "base"])[column].mean()
    return {
        str(regime): over_bases(values.to_numpy(float))
        for regime, values in means.groupby("regime")
    }


def gains(
    runs: pd.DataFrame, probes: Iterable[str] = PROBES, after: str = "right"
) -> dict[str, dict[str, Estimate]]:
    """By probe and regime, how much larger the column `after`_probe is than base_probe."""
    last = final(runs)
    return {
        probe: level(last.assign(gain=last[f"{after}_{probe}"] - last[f"base_{probe}"]), "gain")
        for probe in probes
    }


def contrast(runs: pd.DataFrame, first: str, second: str, column: str = OUTCOME) -> Estimate:
    """First minus second regime, of the last states."""
    means = final(runs).groupby(["regime", "base"])[column].mean().unstack("regime")
    if not {first, second} <= set(means.columns):
        return NO_ESTIMATE
    return over_bases((means[first] - means[second]).to_numpy(float))


def formatted(value: float | None, digits: str = ".3f") -> str:
    """A number for a table, in a format of Python's; `-` where there is none."""
    return "-" if value is None or pd.isna(value) else format(value, digits)


def estimate(mean: Estimate, digits: str = ".3f") -> str:
    """`0.075 (0.068 to 0.083)`, without brackets where there are no bounds."""
    text = formatted(mean.value, digits)
    if mean.low is None or mean.high is None:
        return text
    return f"{text} ({mean.low:{digits}} to {mean.high:{digits}})"
