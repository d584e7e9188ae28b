"""A preset from its first training to its page: what `shadow lab run` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from shadow.lab.design import presets
from shadow.lab.experiment import TaskResult, perform
from shadow.lab.page import figure, page
from shadow.lab.results import collect, write


def run(
    preset: str, out: Path, *, jobs: int, show: Callable[[TaskResult], None] = lambda done: None
) -> dict[str, pd.DataFrame]:
    """Train and audit what out lacks of a preset, and write the tables, `lab.md` and `lab.svg` into
    it.

    Raises ShadowError as `experiment.perform` does.
    """
    chosen = presets()[preset]
    perform(chosen, out, jobs=jobs, show=show)
    tables = collect(chosen, out)
    write(tables, out)
    figure(tables, out / "lab.svg")
    (out / "lab.md").write_text(page(tables, preset), encoding="utf-8")
    return tables


def run_pretrained(
    out: Path, *, jobs: int, show: Callable[[TaskResult], None] = lambda done: None
) -> pd.DataFrame:
    """Train and audit what out lacks of the continuations of a pretrained decoder, and write
    its tables, `pretrained.json`, `pretrained.md` and `pretrained.svg`.

    Raises ShadowError where the model or the texts cannot be fetched.
    """
    from shadow.lab import pretrained, pretrained_page

    out.mkdir(parents=True, exist_ok=True)
    tables = pretrained.perform(
        out,
        pretrained.fetch_ingredients(out),
        jobs=jobs,
        show=lambda what, done, total: show(
            TaskResult(what=what, finished=done, total=total, seconds=0.0)
        ),
    )
    published = pretrained_page.read(out)
    text = pretrained_page.page(published, widths=None)
    (out / "pretrained.md").write_text(text, encoding="utf-8")
    pretrained_page.figure(published.states, out / "pretrained.svg")
    return tables["pretrained"]
