"""The parts of README.md and docs/ that are made from the tables in docs/lab; `make docs` writes
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

import pretrained_page
from calibration import pretrained_verdicts
from lab_page import rates_table
from margins import margin_table, margin_words, reliance_words, seed_words, treatment_words
from page_table import table
from shadow.claims.reference import calibration, reach
from shadow.lab.design import SCALES
from shadow.lab.estimates import contrast, estimate, main_runs
from shadow.lab.results import read
from shadow.text import counted

FOLDER = Path(__file__).parents[2] / "docs" / "lab"
PAIRS = {
    "B - C": "narrow against broad data",
    "D - A": "repetition against the control",
    "C - A": "broad data against the original mixture",
}


def lab() -> str:
    """The lab's main differences in concentration, by scale."""
    runs = read(FOLDER)["runs"]
    rows = []
    for scale in SCALES:
        own = main_runs(runs, scale)
        bases = counted(own["base"].nunique(), "base", "bases")
        for name, what in PAIRS.items() if len(own) else ():
            found = contrast(own, name[0], name[-1])
            rows.append([f"{scale}, {bases}: {name}, {what}", estimate(found, "+.3f")])
    return table(["", "difference in concentration"], rows)


def pretrained() -> str:
    """What the continuations of the pretrained decoder show."""
    states = pretrained_page.read(FOLDER).states
    found = pretrained_page.predictions(states, pd.read_parquet(FOLDER / "widths.parquet"))
    return f"{pretrained_page.in_short(states)}\n\n{pretrained_page.reaching(found)}"


def margin() -> str:
    """What the margin of `shadow compare` rests on."""
    tables = read(FOLDER)
    compared = pretrained_verdicts(pretrained_page.read(FOLDER).compared)
    return "\n\n".join(
        [
            margin_table(tables["comparisons"], compared),
            margin_words(tables["comparisons"]),
            treatment_words(tables["runs"]),
        ]
    )


PARTS: Mapping[str, Callable[[], str]] = {
    "lab": lab,
    "errors": lambda: rates_table(calibration().rates),
    "margin": margin,
    "seeds": lambda: seed_words(read(FOLDER)["comparisons"]),
    "reliance": lambda: reliance_words(read(FOLDER)),
    "reach": lambda: reach(calibration()),
    "pretrained": pretrained,
    "strongest": lambda: pretrained_page.strongest(pretrained_page.read(FOLDER)),
}
