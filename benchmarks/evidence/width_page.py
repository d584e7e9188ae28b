"""The law of width, out of a lab in which presets of widths are finished:

    for width in 64 128 256 512; do shadow lab run --preset width-$width -o lab; done
    python benchmarks/evidence/width_page.py lab

Writes `docs/lab/widths.parquet` (the last state of every run), and `docs/width.md` and
`docs/lab/widths.svg`, made from it. Widths that are not finished there stay as they are published.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from laws import WARM, FigureLaw, counted, dropped, laws
from page_table import table
from shadow.lab.design import MAIN, PROBES, SCALES, WIDTHS, presets
from shadow.lab.estimates import NO_ESTIMATE, estimate, final, formatted
from shadow.lab.experiment import record
from shadow.lab.figure import COLOURS, side_by_side
from shadow.lab.results import collect
from shadow.text import and_list

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "lab" / "widths.parquet"
DRAWN = ("concentration", "ln equivalent directions", "ln PR over null", "ln token coverage")
MIN_BASES = 10  # of one width, below which no bound is claimed for it


def page(runs: pd.DataFrame) -> str:
    """The whole page, ending with a newline; the figure is beside it, as lab/widths.svg."""
    last, every = counted(runs), laws(runs)
    narrower = laws(last[last["width"] < last["width"].max()])
    sections = [
        _head(last),
        "![Four figures by width and regime](lab/widths.svg)",
        _result(every, narrower),
        _transfer(every),
        left_out_section(every),
        _regimes(every),
        _answers(last),
        _bases(last, dropped(runs)),
        _limits(last),
    ]
    return "\n\n".join(sections) + "\n"


def figure(runs: pd.DataFrame, file: Path) -> None:
    """Four figures against the width: every base a dot for each regime, and the fitted law. SVG,
    PNG or PDF.
    """
    last = counted(runs)
    chosen = [one for one in laws(runs) if one.figure.name in DRAWN]
    with side_by_side(len(chosen), file, size=(2.6 * len(chosen), 2.9)) as axes:
        for axis, one in zip(axes, chosen, strict=True):
            valued = last.assign(value=one.figure.value(last))
            means = valued.groupby(["width", "regime", "base"])["value"].mean().reset_index()
            for number, regime in enumerate(MAIN):
                own = means[means["regime"] == regime]
                places = np.log2(own["width"].to_numpy(float)) + 0.08 * (number - 1.5)
                axis.scatter(
                    places, own["value"].to_numpy(float), s=9, color=COLOURS[regime], label=regime
                )
            ends = np.log2([one.widths[0].width, one.widths[-1].width])
            for added, colour in ((0.0, COLOURS["C"]), (one.difference, COLOURS["B"])):
                axis.plot(ends, one.broad + added + one.slope * (ends - 6), color=colour, lw=0.8)
            axis.set_xticks(
                [np.log2(at.width) for at in one.widths], [str(at.width) for at in one.widths]
            )
            axis.set_xlabel("width")
            axis.set_title(one.figure.name, loc="left")
        axes[0].legend(frameon=False, fontsize=7, handletextpad=0.1)


def _head(last: pd.DataFrame) -> str:
    widths = and_list([str(width) for width in sorted({int(width) for width in last["width"]})])
    rates = "; ".join(
        f"{width}: {SCALES[scale].tune.learning_rate * SCALES[scale].tune.width_factor:.3g}"
        for width, (scale, _) in WIDTHS.items()
    )
    return f"""# A law of width

The [lab](lab.md) trains decoders that are 64 wide, and real models are 576 and wider. This page
says how each figure moves with the width, and whether a bound found at some widths holds at
another. It is made from {len(last)} trainings of {last["base"].nunique()} bases at widths {widths}:
the same skills, formats, steps and tokens a step, four layers, MLPs of the same proportion. From
each base, A (the original mixture), B (narrow), C (broad) and D (repetition) are trained
{_times(last)}. AdamW's rate for the matrices of the layers and the head falls as 64 over the width
({rates}); embedding and norms keep theirs.

Made by `shadow lab run --preset width-64` and the other widths into one folder, then
`python benchmarks/evidence/width_page.py FOLDER`."""


def _times(last: pd.DataFrame) -> str:
    """How often each regime is trained from a base, where that differs by width."""
    counts = last.groupby("width").apply(_runs_of_a_base)
    words = {2: "twice", 3: "three times"}
    return and_list(
        [f"{words.get(int(count), count)} ({width})" for width, count in counts.items()]
    )


def _runs_of_a_base(runs: pd.DataFrame) -> int:
    return int(runs.groupby(["base", "regime"]).size().max())


def _result(every: Sequence[FigureLaw], narrower: Sequence[FigureLaw]) -> str:
    """Which figures carry over.

    narrower: the laws without the largest width.
    """
    carried = [one.figure.name for one in every if one.carries]
    rest = [one.figure.name for one in every if not one.carries]
    says = f"None of {len(every)} figures carries over."
    if carried:
        says = f"Of {len(every)} figures, {len(carried)} carry over: {and_list(carried)}."
    if carried and rest:
        says += f" The others do not: {and_list(rest)}."
    return f"""## What carries over

{says} A figure carries over if a law fitted on the other widths predicts the means of narrow and of
broad data at every left-out width to within half of their difference there: then a bound between
the two predictions tells them apart. This was written down before the wide decoders were
trained.

{_stability(every, narrower)}
A law of these widths is not yet one of real models: the same figures of a [pretrained
decoder](pretrained.md), 576 wide and trained on text, are the test of that."""


def _stability(every: Sequence[FigureLaw], narrower: Sequence[FigureLaw]) -> str:
    """How many verdicts the largest width has changed."""
    earlier = {one.figure.name: one for one in narrower}
    changed = [
        f"{one.figure.name} ({_worst(before)})"
        for one in every
        if (before := earlier.get(one.figure.name)) is not None and before.carries != one.carries
    ]
    largest = max(at.width for one in every for at in one.widths)
    if not changed:
        return f"Without width {largest} the verdicts are the same."
    return (
        f"Without width {largest} the verdict on {and_list(changed)} is the other one; in brackets"
        " the worst error then. So the next width may change these verdicts."
    )


def _transfer(every: Sequence[FigureLaw]) -> str:
    rows = [
        [
            one.figure.name,
            formatted(one.broad),
            formatted(one.slope, "+.3f"),
            formatted(one.difference, "+.3f"),
            formatted(one.slope / one.difference, "+.2f"),
            formatted(one.auc_pooled, ".2f"),
            formatted(one.auc_law, ".2f"),
            _worst(one),
            "yes" if one.carries else "no",
        ]
        for one in every
    ]
    heads = [
        "figure", "broad at 64", "a doubling", "B - broad", "doubling over B - broad",
        "AUC, widths mixed",
        "AUC, width taken off", "worst error left out", "carries over",
    ]  # fmt: skip
    return f"""## The fitted laws

For every figure: mean = broad at 64 + log2(width / 64) times what a doubling adds, and B - broad
more for narrow data, by least squares over the means of the widths. Where a doubling adds about as
much as narrow data do, a bound without the width means nothing. The AUC is the share of pairs of a
run of B and one of C, of any widths, in which B has more. The worst error is that of a left-out
width, as a share of its own B - C; 0.5 or more loses the bound.

{table(heads, rows)}"""


def in_differences(error: float) -> str:
    """An error in units of B - C; above 10 its number says no more."""
    return f"{error:.2f}" if error < 10 else "over 10"


def _worst(law: FigureLaw) -> str:
    return f"{in_differences(law.worst.in_differences)} at {law.worst.width}" if law.worst else "-"


def left_out_section(every: Sequence[FigureLaw]) -> str:
    """How many runs of each width lie on the wrong side of a bound from the others."""
    widths = sorted({at.width for one in every for at in one.left_out})
    rows = []
    for one in every:
        wrong = {at.width: f"{at.wrong} of {at.runs}" for at in one.left_out}
        rows.append([one.figure.name, *(wrong.get(width, "-") for width in widths)])
    heads = ["figure", *map(str, widths)]
    return f"""## Runs on the wrong side of a bound from other widths

The bound is halfway between the two predictions for the left-out width; A, C and D should lie on
one side, B on the other. A quarter of the runs are B: a bound that is far off takes a quarter or
three quarters of them wrongly.

{table(heads, rows)}"""


def _regimes(every: Sequence[FigureLaw]) -> str:
    rows = [
        [
            one.figure.name,
            str(at.width),
            *(formatted(at.regimes.get(regime, NO_ESTIMATE).value) for regime in MAIN),
            estimate(at.difference, "+.3f"),
            formatted(at.in_spreads, ".1f"),
            formatted(at.auc, ".2f"),
        ]
        for one in every
        for at in one.widths
    ]
    heads = ["figure", "width", *MAIN, "B - C", "in sd of seeds", "AUC within bases"]
    explained = "\n".join(f"- {one.figure.name}: {one.figure.text}." for one in every)
    return f"""## Every figure by width

Means over bases, medians over the matrices inside layers where the name of a column is given:

{explained}

{table(heads, rows)}"""


def _answers(last: pd.DataFrame) -> str:
    rows = []
    for width, of_width in last.groupby("width"):
        for regime in MAIN:
            own = of_width[of_width["regime"] == regime]
            gained = [
                float((own[f"right_{probe}"] - own[f"base_{probe}"]).mean()) for probe in PROBES
            ]
            rows.append([f"{width}, {regime}", *(formatted(value, "+.3f") for value in gained)])
    return f"""## Does narrow training lose breadth at every width?

Change of the share of right answers against the base.

{table(["width, regime", *PROBES], rows)}"""


def _bases(last: pd.DataFrame, without: pd.DataFrame) -> str:
    rows = []
    for width, (_, planned) in WIDTHS.items():
        own = last[last["width"] == width].drop_duplicates("base")
        right = [f"{own[f'base_{probe}'].mean():.2f}" for probe in ("original", "broad")]
        rows.append([str(width), str(planned), str(len(own)), *right])
    lost = [
        f"{base} (original {original:.2f}, broad {broad:.2f})"
        for base, original, broad in zip(
            without["base"], without["base_original"], without["base_broad"], strict=True
        )
    ]
    dropped_bases = f"Dropped: {and_list(lost)}." if lost else "None was dropped."
    return f"""## The bases

A base counts if it gets {100 * WARM["original"]:.0f} % of its own mixture and {
        100 * WARM["broad"]:.0f} % of the broad cells right, as the ten bases of width 64 do. {
        dropped_bases
    }

{table(["width", "bases trained", "counted", "right: original", "right: broad"], rows)}"""


def _limits(last: pd.DataFrame) -> str:
    counts = last.groupby("width")["base"].nunique()
    few = [f"{width} ({count})" for width, count in counts.items() if count < MIN_BASES]
    few_bases = f" Widths with fewer bases have none: {and_list(few)}." if few else ""
    return f"""## What this does not show

- A bound is claimed from {MIN_BASES} bases of a width upwards, of which one new base in {
        MIN_BASES + 1
    } passes it by chance.{few_bases} So labels are given at the width of the reference alone, and
  real models get none.
- One world of synthetic text, four layers, AdamW from bases trained with Muon, 200 steps. Real data
  differ in more than breadth.
- Least squares over the means of a few widths: the error on a left-out width is what the law is
  worth, not its fit."""


def main(
    lab: Annotated[
        Path, typer.Argument(help="Folder of finished presets of widths.", file_okay=False)
    ],
) -> None:
    """Publish the law of width into this checkout."""
    published, tables = pd.read_parquet(TABLE), []
    for width in WIDTHS:
        preset = presets()[f"width-{width}"]
        missing = [run.name for run in preset.runs if not record(lab, run.base, run.name).exists()]
        if missing:
            of = f"{len(missing)} of {len(preset.runs)} runs are not finished"
            print(f"width {width} stays as it is published: {of}")
            tables.append(published[published["width"] == width])
        else:
            tables.append(final(collect(preset, lab)["runs"]))
    runs = pd.concat(tables, ignore_index=True)
    runs.to_parquet(TABLE, index=False, compression="zstd")
    (ROOT / "docs" / "width.md").write_text(page(runs), encoding="utf-8")
    figure(runs, TABLE.with_suffix(".svg"))


if __name__ == "__main__":
    typer.run(main)
