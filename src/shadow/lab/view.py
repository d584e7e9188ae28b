"""What a person who ran the lab wants to see first: made once, shown in the terminal and written as
Markdown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from shadow.lab.design import MAIN, PROBES, REGIMES
from shadow.lab.estimates import (
    NORM,
    OUTCOME,
    contrast,
    estimate,
    final,
    formatted,
    gains,
    level,
    main_runs,
)
from shadow.text import counted

NOTHING_LEARNED = "nothing was learned; the figures mean nothing"
LEARNED = 0.05  # the share of right answers from which a decoder has learned something
NAMES = {name: REGIMES[name].name for name in MAIN}
CONTRASTS = (("B", "C"), ("D", "A"), ("C", "A"), ("N", "A"))


@dataclass(frozen=True)
class Section:
    """A table, and the differences that the lab is about."""

    title: str
    heads: tuple[str, ...]
    rows: list[list[str]]
    over: str
    """What the differences are means over."""
    differences: list[str]


@dataclass(frozen=True)
class View:
    """A section for each scale of decoder; a warning first, or an empty one."""

    warning: str
    sections: list[Section]


def view(preset: str, runs: pd.DataFrame) -> View:
    """What a preset of the lab shows, with a warning if nothing was learned.

    runs: the table of that name, as `results.collect` makes it.
    """
    answers = [f"{when}_{probe}" for when in ("base", "right") for probe in PROBES]
    learned = (final(runs)[answers].astype(float) >= LEARNED).to_numpy().any()
    return View(
        warning="" if learned else f"{preset}: {NOTHING_LEARNED}",
        sections=list(sections(runs, "answers gained", ("narrow", "broad", "held_out"))),
    )


def sections(
    runs: pd.DataFrame,
    gained: str,
    probes: Sequence[str],
    after: str = "right",
    names: Mapping[str, str] = NAMES,
) -> Iterator[Section]:
    """A section for each scale of the runs.

    gained: what the columns of probes have in common, for people. after: the prefix of the columns
    of runs that have their last values. names: what each regime is called.
    """
    heads = ("", "rel. norm", "conc.", *(probe.replace("_", " ") for probe in probes))
    for scale in dict.fromkeys(runs["scale"]):
        own = main_runs(runs, str(scale), names)
        last, changes = final(own), gains(own, probes, after)
        count = last["base"].nunique()
        norms, concentrations = level(last, NORM), level(last, OUTCOME)
        yield Section(
            title=f"{scale} decoders, {counted(count, 'base', 'bases')}: concentration, and"
            f" {gained}",
            heads=heads,
            rows=[
                [
                    f"{regime}  {name}",
                    formatted(norms[regime].value),
                    formatted(concentrations[regime].value),
                    *(formatted(changes[probe][regime].value, "+.3f") for probe in probes),
                ]
                for regime, name in names.items()
                if regime in concentrations
            ],
            over="mean over bases and 95 % interval" if count > 1 else "one base, so no interval",
            differences=[
                f"{first} - {second}  {estimate(difference, '+.3f')}"
                for first, second in CONTRASTS
                if (difference := contrast(own, first, second)).bases
            ],
        )


def terminal(shown: View) -> RenderableType:
    """The view for the terminal."""
    parts: list[RenderableType] = []
    if shown.warning:
        parts.append(Text(f"{shown.warning}\n", "bold"))
    for section in shown.sections:
        table = Table(*section.heads, title=section.title, box=None, pad_edge=False)
        table.title_justify = "left"
        for column in table.columns[1:]:
            column.justify = "right"
        for row in section.rows:
            table.add_row(*row)
        lines = ["", f"concentration, {section.over}", *section.differences, ""]
        parts += [table, Text("\n".join(lines))]
    return Group(*parts)


def markdown(shown: View, preset: str, picture: str) -> str:
    """The view as a page, ending with a newline.

    picture: the file of the figure, beside the page.
    """
    parts = [f"# shadow lab run --preset {preset}"]
    if shown.warning:
        parts.append(f"**{shown.warning}**")
    parts.append(f"![Concentration by regime and base, and along the runs]({picture})")
    for section in shown.sections:
        differences = "\n".join(f"- {line}" for line in section.differences)
        parts += [
            f"## {section.title}",
            table(section.heads, section.rows),
            f"Concentration, {section.over}:",
            differences,
        ]
    return "\n\n".join(parts) + "\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the rest are numbers."""
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)
