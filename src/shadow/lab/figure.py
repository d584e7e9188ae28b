"""Figures of runs of the lab, as SVG, PNG or PDF by the name of the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from shadow.lab.design import MAIN
from shadow.lab.estimates import NORM, OUTCOME, final, main_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"A": "#7f7f7f", "B": "#d55e00", "C": "#0072b2", "D": "#009e73"}  # Okabe and Ito 2008


@contextlib.contextmanager
def side_by_side(count: int, file: Path, *, size: tuple[float, float]) -> Iterator[Sequence[Axes]]:
    """Axes in a row, saved to a file at the end.

    size: width and height of the figure in inches.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with mpl.rc_context(
        {
            "font.size": 8,
            "svg.hashsalt": "shadow",
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        drawn, axes = plt.subplots(1, count, figsize=size, layout="constrained", squeeze=False)
        yield list(axes[0])
        drawn.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=160)
        plt.close(drawn)


def figure(runs: pd.DataFrame, file: Path) -> None:
    """Concentration by regime and base, and along the runs against the norm."""
    with side_by_side(2, file, size=(7, 3.4)) as axes:
        draw_bases(axes[0], runs)
        draw_paths(axes[1], runs)


def draw_bases(axis: Axes, runs: pd.DataFrame) -> None:
    """The concentration of every run's last state, by base and regime."""
    last = final(main_runs(runs))
    bases = list(dict.fromkeys(last["base"]))
    for place, base in enumerate(bases):
        for number, regime in enumerate(MAIN):
            outcomes = last.loc[(last["base"] == base) & (last["regime"] == regime), OUTCOME]
            axis.scatter(
                [place + 0.18 * (number - 1.5)] * len(outcomes),
                outcomes,
                s=9,
                color=COLOURS[regime],
            )
    axis.set_xticks(
        range(len(bases)), [base.replace("-warm-", " ") for base in bases], rotation=60, ha="right"
    )
    axis.set_ylabel("median concentration")
    axis.set_title("last step, each run a dot", loc="left")
    handles = [axis.scatter([], [], s=12, color=COLOURS[regime], label=regime) for regime in MAIN]
    axis.legend(
        handles=handles,
        frameon=False,
        ncols=4,
        loc="upper right",
        columnspacing=0.6,
        handletextpad=0.1,
    )


def draw_paths(axis: Axes, runs: pd.DataFrame) -> None:
    """The concentration of every run against its relative norm, over its measured states."""
    for (_, regime, _), states in main_runs(runs).groupby(["base", "regime", "seed"]):
        path = states.sort_values("share")
        axis.plot(
            path[NORM].astype(float),
            path[OUTCOME].astype(float),
            color=COLOURS[str(regime)],
            lw=0.6,
            alpha=0.6,
        )
    axis.set_xscale("log")
    axis.set_xlabel("relative norm")
    axis.set_title("along the runs", loc="left")
