"""What a person who ran the lab wants to see first, as a document for terminal and page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from shadow.lab.design import FREQUENCIES, MAIN, PROBES, REGIMES
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
from shadow.telling.document import (
    Block,
    Column,
    Document,
    FigureRow,
    Figures,
    Headline,
    Image,
    Section,
    Table,
)
from shadow.text import counted

LEARNED = 0.05  # the share of right answers from which a decoder has learned something
NAMES = {name: REGIMES[name].name for name in (*MAIN, *FREQUENCIES)}
CONTRASTS = (("B", "C"), ("D", "A"), ("C", "A"), ("N", "A"), ("C^2", "C"))


def lab_document(preset: str, picture: str, scales: Sequence[Block], warning: str = "") -> Document:
    """What a preset shows. picture: the file of its figure, beside the page. scales: the sections
    of its decoders.
    """
    title = Section(f"shadow lab run --preset {preset}")
    headline = [Headline(f"{preset}: {warning}", "warning")] if warning else []
    image = Image("Concentration by regime and base, and along the runs", picture)
    return Document([title, *headline, image, *scales])


def warning_of(runs: pd.DataFrame) -> str:
    """What is said first where nothing was learned; otherwise empty.

    runs: the table of that name, as `results.collect` makes it.
    """
    answers = [f"{when}_{probe}" for when in ("base", "right") for probe in PROBES]
    learned = (final(runs)[answers].astype(float) >= LEARNED).to_numpy().any()
    return "" if learned else "nothing was learned; the figures mean nothing"


def sections(
    runs: pd.DataFrame,
    gained: str,
    probes: Sequence[str],
    after: str = "right",
    names: Mapping[str, str] = NAMES,
) -> Iterator[Block]:
    """For each scale of the runs a table, and the differences that the lab is about.

    gained: what the columns of probes have in common, for people. after: the prefix of the columns
    of runs that have their last values. names: what each regime is called.
    """
    heads = ("rel. norm", "conc.", *(probe.replace("_", " ") for probe in probes))
    columns = [Column("", "text"), *map(Column, heads)]
    for scale in dict.fromkeys(runs["scale"]):
        own = main_runs(runs, str(scale), names)
        last, changes = final(own), gains(own, probes, after)
        count = last["base"].nunique()
        norms, concentrations = level(last, NORM), level(last, OUTCOME)
        rows = [
            [
                f"{regime}  {name}",
                formatted(norms[regime].value),
                formatted(concentrations[regime].value),
                *(formatted(changes[probe][regime].value, "+.3f") for probe in probes),
            ]
            for regime, name in names.items()
            if regime in concentrations
        ]
        over = "mean over bases and 95 % interval" if count > 1 else "one base, so no interval"
        differences = [
            FigureRow(f"{first} - {second}", estimate(difference, "+.3f"))
            for first, second in CONTRASTS
            if (difference := contrast(own, first, second)).bases
        ]
        bases = counted(count, "base", "bases")
        yield Section(f"{scale} decoders, {bases}: concentration, and {gained}")
        yield Table(columns, rows)
        yield Figures(differences, f"concentration, {over}")
