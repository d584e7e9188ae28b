"""A preset from its first training to its page: what `shadow lab run` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shadow.files import require_utf8
from shadow.lab import experiment, pretrained
from shadow.lab.design import presets
from shadow.lab.experiment import Show, unseen
from shadow.lab.figure import figure
from shadow.lab.results import collect, write
from shadow.lab.texts import INVENTED, QUESTIONS
from shadow.lab.view import lab_document, sections, warning_of
from shadow.outputs.markdown import markdown
from shadow.telling.document import Document


@dataclass(frozen=True)
class Finished:
    """A preset whose runs are all there, and what it wrote into its folder."""

    document: Document
    rows: int
    files: list[str]


def run(preset: str, out: Path, *, jobs: int, show: Show = unseen) -> Finished:
    """Train and audit what out lacks of a preset; write its tables, a page and a figure into it.

    Raises ShadowError as `experiment.perform` does, where what `pretrained` is made of cannot be
    fetched, and where the name of out is not UTF-8.
    """
    require_utf8(out)
    if preset == "pretrained":
        out.mkdir(parents=True, exist_ok=True)
        ingredients = pretrained.fetch_ingredients(out)
        states = pretrained.perform(out, ingredients, jobs=jobs, show=show)["pretrained"]
        runs, rows = pretrained.as_runs(states, "F32"), len(states)
        texts, change = ("sources", QUESTIONS, INVENTED), "change of the held-out loss"
        scales, warning = sections(runs, change, texts, "held_out", pretrained.NAMES), ""
        files = ["pretrained.parquet", "pretrained.md", "pretrained.svg"]
    else:
        chosen = presets()[preset]
        experiment.perform(chosen, out, jobs=jobs, show=show)
        tables = collect(chosen, out)
        write(tables, out)
        runs = tables["runs"]
        scales = sections(runs, "answers gained", ("narrow", "broad", "held_out"))
        rows, warning = len(runs), warning_of(runs)
        files = ["runs.parquet", "comparisons.parquet", "lab.md", "lab.svg"]
    page, picture = files[-2:]
    figure(runs, out / picture)
    document = lab_document(preset, picture, list(scales), warning)
    (out / page).write_text(markdown(document, level=1), encoding="utf-8")
    return Finished(document, rows, files)
