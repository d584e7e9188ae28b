"""lineage: size, storage and place of each step from one stage of a base to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from shadow.comparing.lineage import Chain, Step, lineage
from shadow.errors import ShadowError
from shadow.outputs.figures.source import Choice, FigureData, shown
from shadow.outputs.figures.style import (
    BLACK,
    GREY,
    PALE,
    annotate,
    entitle,
    legend_above,
    plain_numbers,
    quieten,
)
from shadow.telling.reading import read_step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_STEPS = 12  # more cannot be told apart at the width of a column
GROUPS = {  # colour and hatch: each of them alone is enough
    "attention": ("#0072B2", ""),
    "MLP": ("#56B4E9", "////"),
    "embedding": ("#E69F00", "...."),
    "head": ("#D55E00", "xxxx"),
}
OTHER = ("#cccccc", "----")
ROOM = 1.7  # by how much the axis of sizes goes beyond them: it has a number in any case
LETTERS = 44  # of all names of steps together that stand side by side


def draw_lineage(figure: Figure, sources: list[FigureData], choice: Choice) -> list[str]:
    """By step of the longest chain: relative norm, how much storage kept, and in which modules."""
    steps = [step for source in sources if (step := read_step(source.report)) is not None]
    known = lineage(steps)
    if not known.chains:
        raise ShadowError(
            f"{sources[0].folder}: no step from one checkpoint to another",
            "; ".join(known.notes) or None,
        )
    chain = max(known.chains, key=lambda chain: len(chain.steps))
    drawn = chain.steps[:MOST_STEPS]
    figure.set_size_inches(choice.width, choice.width * 1.2)
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(1.3, 0.8, 1.2))
    _draw_sizes(top, drawn)
    _draw_kept(middle, drawn)
    _draw_groups(bottom, drawn)
    names = [f"{shown(step.start, 16)} to\n{shown(step.end, 16)}" for step in drawn]
    if sum(len(max(name.split("\n"), key=len)) for name in names) > LETTERS:
        upright = [name.replace("\n", " ") for name in names]
        bottom.set_xticks(range(len(drawn)), upright, rotation=90)
    else:
        bottom.set_xticks(range(len(drawn)), names)
    bottom.set_xlim(-0.6, len(drawn) - 0.4)
    for axes in (top, middle, bottom):
        quieten(axes)
    annotate(
        figure,
        "size: filled before it was rounded, open as stored",
        "kept: share of the change that is the update's",
    )
    entitle(figure, sources, choice)
    return _notes(chain, known.chains, known.notes)


def _notes(chain: Chain, chains: Sequence[Chain], notes: Sequence[str]) -> list[str]:
    texts = [f"steps {' to '.join(chain.stages)}"]
    if len(chain.steps) > MOST_STEPS:
        texts.append(f"the first {MOST_STEPS} of {len(chain.steps)} steps")
    others = [" to ".join(other.stages) for other in chains if other is not chain]
    return [*texts, *(f"without {other}" for other in others), *notes]


def _draw_sizes(axes: Axes, steps: Sequence[Step]) -> None:
    sizes = np.array([step.size or np.nan for step in steps], dtype=float)
    axes.plot(range(len(steps)), sizes, color=GREY, linewidth=0.7, zorder=1)
    for place, (step, size) in enumerate(zip(steps, sizes, strict=True)):
        filled = step.relative_norm_unrounded is not None
        fill = BLACK if filled else "white"
        axes.plot([place], [size], "o", color=BLACK, markerfacecolor=fill, markersize=4)
    if np.isfinite(sizes).any():
        axes.set_yscale("log")
        least, largest = np.nanmin(sizes) / ROOM, np.nanmax(sizes) * ROOM
        axes.set_ylim(least, largest)
        plain_numbers(axes.yaxis, float(np.log10(largest / least)))
    axes.set_ylabel("relative norm")


def _draw_kept(axes: Axes, steps: Sequence[Step]) -> None:
    for place, step in enumerate(steps):
        if step.kept is None:
            axes.text(
                place, 0.5, "not known", ha="center", va="center", fontsize=5, color=GREY,
                rotation=90,
            )  # fmt: skip
        else:
            axes.bar([place], [1.0], width=0.6, color=PALE, linewidth=0)
            axes.bar([place], [step.kept], width=0.6, color=GREY, linewidth=0)
    axes.set_ylim(0, 1)
    axes.set_ylabel("kept")


def _draw_groups(axes: Axes, steps: Sequence[Step]) -> None:
    """Shares of the energy, stacked; groups without a colour of their own are one."""
    names = [*GROUPS, "other"]
    shares = np.zeros((len(names), len(steps)))
    for place, step in enumerate(steps):
        for group in step.groups:
            name = group.name if group.name in GROUPS else "other"
            shares[names.index(name), place] += group.energy_share
    below = np.zeros(len(steps))
    for name, share in zip(names, shares, strict=True):
        if share.any():
            colour, hatch = GROUPS.get(name, OTHER)
            axes.bar(
                range(len(steps)), share, 0.6, below, label=name, color=colour, hatch=hatch,
                edgecolor="white", linewidth=0.3,
            )  # fmt: skip
            below = below + share
    axes.set_ylim(0, 1)
    axes.set_ylabel("energy by\nmodules")
    if below.any():
        named = [name for name, share in zip(names, shares, strict=True) if share.any()]
        axes.legend(**legend_above(named) | {"handlelength": 1.3})
