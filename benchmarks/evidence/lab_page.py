"""What the repository ships of the lab, out of a finished run of it:

    shadow lab run --preset full -o lab
    python benchmarks/evidence/lab_page.py lab

Writes `docs/lab/*.parquet` (every number), `docs/lab.md` and `docs/lab.svg` (made from them),
`registry/reference/` (what labels are held against, and how often they err) and `registry/demo/`
(three of its checkpoints); with `--preset frequency` a table of last states and the page alone.
Tests hold the page and the reference against the tables.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pandas as pd
import torch
import transformers
import typer

import demo_family
from calibration import (
    DATA,
    MIN_BASES,
    MIN_TRAININGS,
    all_rates,
    calibration_json,
    copy_labels,
    copy_rates,
    fit,
    label_rates,
    left_out_words,
    reference,
    reference_csv,
    verdict_rates,
)
from contrasts import Control, doses, separations, storage, treatments
from margins import gap_words, margin_words
from page_table import table
from shadow import __version__
from shadow.claims.reference import Rate
from shadow.comparing.comparison import MARGIN
from shadow.comparing.differences import FIGURES
from shadow.lab.design import COPIES, MAIN, PROBES, REGIMES, SCALES, TREATMENTS, presets
from shadow.lab.estimates import (
    NO_ESTIMATE,
    OUTCOME,
    Estimate,
    contrast,
    estimate,
    final,
    formatted,
    gains,
    level,
    main_runs,
)
from shadow.lab.figure import COLOURS, draw_bases, draw_paths, side_by_side
from shadow.lab.results import collect, read, write
from shadow.lab.tasks import World, falling
from shadow.text import and_list, counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).parents[2]
SHOWN = (  # columns of the table of regimes
    "relative_norm", "concentration", "stable_rank", "participation_share", "effective_rank",
    "top4_energy",
    "spike_energy", "spikes", "depth_entropy", "effective_rank_shift",
)  # fmt: skip
PAIRS = {
    "B - C": "narrow against broad",
    "B - A": "narrow against the original mixture",
    "D - A": "ten-fold repetition of a fifth against none",
    "C - A": "broad against the original mixture",
}
MADE = {"bf16": "both sides stored as bf16", "averaged": "weights averaged over runs"}
ABOUT_FIGURE = "Concentration by regime and base, along the runs, and of B and C by treatment"
FREQUENCY = "frequency"  # a preset, and the table of its runs
MOST_COLUMNS = 24  # of the table of what separates
USELESS = (0.2, 0.8)  # between these AUCs a column does not tell B from C


def page(tables: Mapping[str, pd.DataFrame]) -> str:
    """The whole page, ending with a newline; the figure is beside it, as lab.svg."""
    runs, comparisons = tables["runs"], tables["comparisons"]
    parts = [_head(runs), f"![{ABOUT_FIGURE}](lab.svg)"]
    for scale in SCALES:
        own = main_runs(runs, scale)
        if len(own):
            sections = (_regimes, _gains, _contrasts, _separation)
            parts += [section(own, scale) for section in sections]
    parts += [_controls(runs), _doses(runs)]
    if FREQUENCY in tables:
        parts.append(_frequencies(tables[FREQUENCY], runs))
    parts += [_cold(runs), _rates(runs, comparisons), *_words(runs)]
    return "\n\n".join([*parts, LIMITS]) + "\n"


def published() -> dict[str, pd.DataFrame]:
    """The tables that the page is made of."""
    folder = ROOT / "docs" / "lab"
    return {**read(folder), FREQUENCY: pd.read_parquet(folder / f"{FREQUENCY}.parquet")}


def figure(runs: pd.DataFrame, file: Path) -> None:
    """Concentration by regime and base, along the runs against the norm, and under every treatment.
    SVG, PNG or PDF.
    """
    with side_by_side(3, file, size=(10, 3.4)) as axes:
        draw_bases(axes[0], runs)
        draw_paths(axes[1], main_runs(runs, "small"))
        axes[1].set_xticks([0.02, 0.03, 0.04, 0.06], ["0.02", "0.03", "0.04", "0.06"])
        axes[1].minorticks_off()
        axes[1].set_title("small bases, along the runs", loc="left")
        _draw_treatments(axes[2], runs)


def _draw_treatments(axis: Axes, runs: pd.DataFrame) -> None:
    rows = treatments(runs, "small")
    names = list(dict.fromkeys(row.treatment for row in rows))
    for row in rows:
        mean, low, high = row.concentration.value, row.concentration.low, row.concentration.high
        if mean is None:
            continue
        spread = None
        if low is not None and high is not None:
            spread = [[mean - low], [high - mean]]
        beside = 0.12 if row.regime == "B" else -0.12
        place = len(names) - 1 - names.index(row.treatment) + beside
        axis.errorbar(mean, place, xerr=spread, fmt="o", ms=4, color=COLOURS[row.regime], lw=1)
    axis.set_yticks(range(len(names)), [TREATMENTS[name].text for name in reversed(names)])
    axis.set_xlabel("median concentration")
    axis.set_title("B and C by treatment, small bases", loc="left")


def _head(runs: pd.DataFrame) -> str:
    last = final(runs)
    minutes = counted(round(last["seconds"].sum() / 60), "minute", "minutes")
    regimes = "\n".join(
        f"- **{name}**, {REGIMES[name].name}: {REGIMES[name].text}." for name in MAIN
    )
    return f"""# The lab: what the data leave in the weights of tiny decoders

Made by `shadow lab run --preset full -o FOLDER`, then
`python benchmarks/evidence/lab_page.py FOLDER`: {(last["kind"] == "trained").sum()} trainings of
{last["base"].nunique()} bases, {len(last)} pairs, all audited by the code of `shadow audit`;
{minutes} of one core for the pairs. The
training of the bases comes on top. Bases are trained from random numbers. All but cold ones have
seen every skill and format at least rarely; the tables say how often they answer right.
Each base is trained further for equally many steps, on data that differ:

{regimes}

Numbers are means over bases, with 95 % t intervals over bases in brackets. The base is the unit,
because the runs of one base are not independent. Concentration and other columns are
medians over the matrices inside layers."""


def _regimes(runs: pd.DataFrame, scale: str) -> str:
    last = final(runs)
    names = [(f"`{name}`", f"layers_{name}", name, ".3f") for name in SHOWN]
    names += [(f"right: {probe}", f"right_{probe}", "", ".2f") for probe in PROBES]
    rows = []
    for shown, of_layers, of_model, digits in names:
        column = of_layers if of_layers in last else of_model
        if column in last:
            rows.append([shown, *_values(level(last, column), digits)])
    bases = counted(last["base"].nunique(), "base", "bases")
    width = SCALES[scale].size.width
    head = f"## {scale.capitalize()} decoders (width {width}, {bases}), last step"
    if scale == "large":
        head += f"\n\n{_not_of_the_law()}"
    return f"{head}\n\n{table(['', *MAIN], rows)}"


def _not_of_the_law() -> str:
    """Why the large decoders have other values than those as wide in the law of width."""
    large, wide = SCALES["large"], SCALES["wide128"]
    rate = wide.tune.learning_rate * wide.tune.width_factor
    return (
        f"The law of width has higher concentrations at width {large.size.width}. Its decoders"
        f" learn the tasks of the small ones, {_tasks(wide.world)} (here {_tasks(large.world)}),"
        " from bases that Muon trained (here AdamW), and continue for"
        f" {wide.tune.steps} steps at a rate of {rate:g} (here {large.tune.steps} at"
        f" {large.tune.learning_rate:g}). Which of these matters was not measured."
    )


def _tasks(world: World) -> str:
    return f"{len(world.skills)} skills in {len(world.formats)} formats"


def _values(by_regime: Mapping[str, Estimate], digits: str = ".3f") -> list[str]:
    """A mean for each of the main regimes."""
    return [formatted(by_regime.get(regime, NO_ESTIMATE).value, digits) for regime in MAIN]


def _gains(runs: pd.DataFrame, scale: str) -> str:
    gained = gains(runs)
    rows = [
        [probe, *(estimate(gained[probe].get(regime, NO_ESTIMATE), "+.3f") for regime in MAIN)]
        for probe in PROBES
    ]
    narrow, broad = (gained[probe].get("B", NO_ESTIMATE) for probe in ("narrow", "broad"))
    says = "Change of the share of right answers against the base."
    if narrow.low is not None and broad.high is not None:
        wins = "wins" if narrow.low > 0 else "does not clearly win"
        loses = "loses breadth" if broad.high < 0 else "does not clearly lose breadth"
        says += (
            f" B {wins} on its benchmark ({estimate(narrow, '+.3f')}) and {loses}"
            f" ({estimate(broad, '+.3f')} on the broad cells)."
        )
    return (
        "### Does B win on its benchmark and lose breadth?"
        f" ({scale})\n\n{says}\n\n{table(['probe', *MAIN], rows)}"
    )


def _contrasts(runs: pd.DataFrame, scale: str) -> str:
    found = {name: contrast(runs, name[0], name[-1]) for name in PAIRS}
    rows = [
        [f"{name}: {PAIRS[name]}", estimate(one, "+.3f"), _says(one)] for name, one in found.items()
    ]
    heads = ["", "difference", f"margin {MARGIN:g}"]
    text = f"### Differences in concentration ({scale})\n\n{table(heads, rows)}"
    broad = found["C - A"]
    if broad.high is None or broad.high >= 0:
        text += (
            "\n\nBroad data are **not** seen to be less concentrated than the original mixture:"
            " what is measured is that narrow data concentrate."
        )
    return text


def _says(difference: Estimate) -> str:
    if difference.value is None:
        return "-"
    if difference.low is None or difference.high is None:
        return "one base: no interval"
    if difference.low > -MARGIN and difference.high < MARGIN:
        return "within: no difference that counts"
    excludes_zero = difference.low > 0 or difference.high < 0
    return "beyond" if excludes_zero and abs(difference.value) >= MARGIN else "undecided"


def _separation(runs: pd.DataFrame, scale: str) -> str:
    ranked = separations(runs)
    names = [one.column.removeprefix("layers_") for one in ranked]
    votes = {figure.name for figure in FIGURES if figure.direction} | {"participation_share"}
    rows = [
        [
            f"`{name}`{' (votes)' if name in votes else ''}",
            estimate(one.difference, "+.3g"),
            formatted(one.in_spreads, ".1f"),
            formatted(one.auc, ".2f"),
            estimate(one.at_norm, "+.3g"),
            formatted(one.auc_at_norm, ".2f"),
        ]
        for name, one in list(zip(names, ranked, strict=True))[:MOST_COLUMNS]
    ]
    useless = {
        name: f"`{name}` ({one.auc:.2f})"
        for name, one in list(zip(names, ranked, strict=True))[MOST_COLUMNS:]
        if one.auc is not None and USELESS[0] < one.auc < USELESS[1]
    }
    heads = ["column", "B - C", "in sd of seeds", "AUC", "B - C at equal norm", "AUC at equal norm"]
    note = ""
    if useless:
        note = (
            f"\n\nNo use for telling B from C (AUC between {USELESS[0]:g} and {USELESS[1]:g}; 0.5"
            f" is chance): {', '.join(useless.values())}."
        )
    if "spikes" in useless:
        note += (
            " `spikes` has another purpose: it counts the directions of one change that stand"
            " out from noise, whatever the data."
        )
    return (
        f"### Which columns separate B from C? ({scale})\n\nThe {len(rows)}"
        f" best of {len(ranked)}, by AUC within bases; an AUC of 0 separates as well as one of 1."
        " The order was chosen on these runs, but that `concentration` is the outcome was decided"
        f" before any run.\n\n{table(heads, rows)}{note}"
    )


def _table_of(
    first: str, against: str, controls: Sequence[Control], name: Callable[[Control], str]
) -> str:
    heads = [first, "runs", "relative norm", "concentration", against]
    rows = [
        [
            name(control),
            str(control.runs),
            formatted(control.relative_norm),
            estimate(control.concentration),
            estimate(control.change, "+.3f"),
        ]
        for control in controls
    ]
    return table(heads, rows)


def _controls(runs: pd.DataFrame) -> str:
    parts = ["## What else moves it\n\nOne change at a time, on the same bases and data."]
    for scale in SCALES:
        treated, made = treatments(runs, scale), storage(runs, scale)
        if len({control.treatment for control in treated}) > 1:
            rows = _table_of(
                "treatment",
                "against AdamW, same data",
                treated,
                lambda control: f"{control.regime}, {TREATMENTS[control.treatment].text}",
            )
            parts += [
                f"### {scale.capitalize()} decoders",
                rows,
                f"B - C within each: {gap_words(treated)}.",
            ]
        if made:
            rows = _table_of(
                "",
                "against the runs it is made of",
                made,
                lambda control: f"{control.regime}: {MADE[control.kind]}",
            )
            parts += [f"### Storage and averaging ({scale})", rows]
    return "\n\n".join(parts)


def _dose_table(runs: pd.DataFrame, *, warm: bool) -> str:
    return _table_of(
        "data",
        "against A, same bases",
        doses(runs, "small", warm=warm),
        lambda control: f"{control.regime}: {REGIMES[control.regime].text}",
    )


def _doses(runs: pd.DataFrame) -> str:
    rows = _dose_table(runs, warm=True)
    return f"## Doses of narrowness, novelty and repetition (small)\n\n{rows}"


def _frequencies(runs: pd.DataFrame, others: pd.DataFrame) -> str:
    """The same cells, ever fewer of them often; how far two seeds of one base and dose differ.
    Beside them B, of the same bases and seeds.
    """
    narrow = main_runs(others, "small", ["B"])
    same = narrow["base"].isin(runs["base"]) & narrow["seed"].isin(runs["seed"])
    runs = pd.concat([runs, narrow[same]], ignore_index=True)
    last = final(runs)
    seeds = last.groupby(["regime", "base"])[OUTCOME].agg(np.ptp).groupby("regime").max()
    purity, broad = level(last, "layers_excess_purity"), gains(last, ["broad"])["broad"]
    world = SCALES["small"].world
    rows = []
    for one in doses(runs, "small", reference="C"):
        regime = REGIMES[one.regime]
        mixture = falling(regime.mixture(world, world.original), regime.power, Random(0))
        rows.append(
            [
                f"{one.regime}: {regime.text}",
                f"{mixture.effective_cells:.1f}",
                str(one.runs),
                formatted(one.relative_norm),
                estimate(one.concentration),
                estimate(one.change, "+.3f"),
                "-" if one.regime == "C" else _says(one.change),
                formatted(seeds[one.regime]),
                estimate(purity[one.regime], ".4f"),
                estimate(broad[one.regime], "+.3f"),
            ]
        )
    heads = ["data", "effective cells", "runs", "relative norm", "concentration"]
    heads += ["against C, same bases", f"margin {MARGIN:g}"]
    heads += ["two seeds differ by, at most", "excess purity"]
    return (
        "## Doses of frequency (small)\n\nEvery dose has all cells of C, in an order that each seed"
        " draws, and only how often they come differs. Effective cells: so many equally frequent"
        " ones would repeat as often. Made by `shadow lab run --preset frequency -o FOLDER`, then"
        " `python benchmarks/evidence/lab_page.py FOLDER --preset frequency`."
        f"\n\n{table([*heads, 'broad answers gained'], rows)}"
    )


def _cold(runs: pd.DataFrame) -> str:
    return (
        "## Cold bases\n\nThese bases have seen the core alone: the other skills and formats are"
        " new to them. **Novelty concentrates a delta as narrowness does**, so a concentrated delta"
        f" may come from either.\n\n{_dose_table(runs, warm=False)}"
    )


def rates_table(rates: Iterable[Rate]) -> str:
    """How often something errs, a row for each kind of error."""
    heads = ["", "cases", "bases with any", "95 % for the share of bases"]
    rows = [
        [
            rate.what,
            f"{rate.errors} of {rate.cases}",
            f"{rate.affected} of {rate.bases}",
            f"{rate.low:.2f} to {rate.high:.2f}",
        ]
        for rate in rates
    ]
    return table(heads, rows)


def _rates(runs: pd.DataFrame, comparisons: pd.DataFrame) -> str:
    rates = [*label_rates(reference(runs)), *copy_rates(runs)]
    if len(comparisons):
        rates = [*verdict_rates(comparisons), *rates]
    margin = margin_words(comparisons)
    return (
        "## How often it errs\n\n`shadow compare` was tried on every two runs of a base, A to D"
        " with AdamW at one rate; the label on every training with bounds fitted without its base."
        f" Intervals are those of Clopper and Pearson, over bases.{margin and ' ' + margin}"
        f"\n\n{rates_table(rates)}"
    )


def _words(runs: pd.DataFrame) -> list[str]:
    """Labels of left-out trainings by regime, bounds, and the pairs that no training made."""
    trainings = reference(runs)
    words = left_out_words(trainings, known=True)
    kinds = ("concentrated", "mixed", "distributed", "not assessable")
    labels = [
        [
            f"{regime}, {TREATMENTS[str(treatment)].text}",
            *(str(int((given == kind).sum())) for kind in kinds),
        ]
        for (treatment, regime), given in words.groupby(["treatment", "regime"])["word"]
    ]
    bounds = [
        [
            f"{fitted.short_side}, {fitted.optimizer or 'any'}",
            str(fitted.narrow),
            str(fitted.broad),
            formatted(fitted.bounds["concentration"].concentrated),
            formatted(fitted.bounds["concentration"].distributed),
        ]
        for fitted in fit(trainings)
    ]
    of_bounds = ["short side, optimiser", "narrow", "broad"]
    of_bounds += ["concentrated above", "distributed below"]
    copies = [
        [
            COPIES[str(how)],
            str(len(group)),
            formatted(group["concentration"].astype(float).median()),
            _copy_labels(group),
        ]
        for how, group in copy_labels(runs).groupby("regime")
    ]
    return [
        "### Labels of trainings, optimiser given",
        _data_words(words),
        table(["", *kinds], labels),
        "### Bounds of concentration",
        f"Fewer than {MIN_TRAININGS} trainings of a kind, or than {MIN_BASES} bases, make no"
        " bounds.",
        table(of_bounds, bounds),
        "### Pairs that no training made",
        table(["", "pairs", "concentration", "labels"], copies),
    ]


def _data_words(words: pd.DataFrame) -> str:
    """Which regimes count as narrow and as broad data, and how many trainings each has."""
    kinds = []
    for data in ("narrow", "broad"):
        names = and_list([name for name, kind in DATA.items() if kind == data])
        kinds.append(f"{data} data are {names} ({int((words['data'] == data).sum())})")
    return (
        f"In the rates of labels, {'; '.join(kinds)}. Dilutions and a hundredfold repetition are"
        " neither. *Not assessable*: the relative norm lies outside those of the other bases'"
        " trainings; a narrow one of these counts as not called concentrated."
    )


def _copy_labels(copies: pd.DataFrame) -> str:
    """How many copies have each label, with the gates that stopped one."""
    labels = copies["label"] + copies["stopped"].map(
        lambda gates: f" ({gates.replace(',', ', ')})" if gates else ""
    )
    return ", ".join(f"{count} {text}" for text, count in Counter(labels).most_common())


LIMITS = """## Limits

The lab has one family of synthetic tasks and four-layer decoders of 0.2 and 0.8 million parameters;
the models that people audit are ten thousand times larger. Breadth, variety of tokens and variety
of answers change together between B and C. The bases of one scale differ in their seed alone. The
lab shows that narrow data concentrate a delta here. It does not show that a concentrated delta
comes from narrow data: novelty of the data, LoRA, a small learning rate and heavy repetition
concentrate it too, and Muon removes the concentration."""


def main(
    lab: Annotated[
        Path, typer.Argument(help="Folder of a finished run of the preset.", file_okay=False)
    ],
    preset: Annotated[str, typer.Option(help="full, or frequency for its table alone.")] = "full",
    demo: Annotated[bool, typer.Option(help="Also write the demo's checkpoints.")] = True,
) -> None:
    """Publish a finished lab into this checkout."""
    torch.set_num_threads(1)
    docs, registry = ROOT / "docs", ROOT / "registry"
    tables = collect(presets()[preset], lab)
    runs = tables["runs"]
    write({FREQUENCY: final(runs)} if preset == FREQUENCY else tables, docs / "lab")
    (docs / "lab.md").write_text(page(published()), encoding="utf-8")
    if preset == FREQUENCY:
        return
    figure(runs, docs / "lab.svg")
    trainings = reference(runs)
    # first, since a label counts the bases of the shipped trainings
    (registry / "reference" / "runs.csv").write_text(reference_csv(trainings), encoding="utf-8")
    compared = pd.read_parquet(docs / "lab" / "pretrained-comparisons.parquet")
    made = {
        "preset": "full",
        "bases": int(runs["base"].nunique()),
        "trainings": len(trainings),
        "shadow": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    (registry / "reference" / "calibration.json").write_text(
        calibration_json(trainings, all_rates(tables, compared), made), encoding="utf-8"
    )
    if demo:
        demo_family.export(lab, registry / "demo")


if __name__ == "__main__":
    typer.run(main)
