"""What a person who ran the lab wants to see first, for the terminal."""

from __future__ import annotations

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from shadow.lab.design import MAIN, REGIMES, SCALES
from shadow.lab.findings import OUTCOME, contrast, gains, level, main_runs
from shadow.lab.page import NOTHING_LEARNED, estimate, formatted, learned
from shadow.lab.results import final
from shadow.text import counted

HEADS = ("", "rel. norm", "conc.", "narrow", "broad", "held out")


def view(tables: dict[str, pd.DataFrame], preset: str) -> RenderableType:
    """A table for each scale, and the differences that the lab is about; a warning first if nothing
    was learned.
    """
    parts: list[RenderableType] = []
    if not learned(tables["runs"]):
        parts.append(Text(f"{preset}: {NOTHING_LEARNED}\n", "bold"))
    for scale in SCALES:
        runs = main_runs(tables["runs"], scale)
        if runs.empty:
            continue
        last, gained = final(runs), gains(runs)
        count = last["base"].nunique()
        bases = counted(count, "base", "bases")
        title = f"{scale} decoders, {bases}: concentration, and answers gained"
        table = Table(*HEADS, title=title, title_justify="left", box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        norms, concentrations = level(last, "layers_relative_norm"), level(last, OUTCOME)
        for regime in (name for name in MAIN if name in concentrations):
            table.add_row(
                f"{regime}  {REGIMES[regime].name}",
                formatted(norms[regime].value),
                formatted(concentrations[regime].value),
                *(
                    formatted(gained[probe][regime].value, "+.2f")
                    for probe in ("narrow", "broad", "held_out")
                ),
            )
        lines = [
            f"{first} - {second}  {estimate(contrast(runs, first, second), '+.3f')}"
            for first, second in (("B", "C"), ("D", "A"), ("C", "A"))
        ]
        over = "mean over bases and 95 % interval" if count > 1 else "one base, so no interval"
        parts += [table, Text("\n".join(["", f"concentration, {over}", *lines, ""]))]
    return Group(*parts)
