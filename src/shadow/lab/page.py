"""What the lab shows, as a Markdown page and a figure. Made from the tables alone; the numbers are
findings' own.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from shadow.claims.reference import Rate
from shadow.comparing.comparison import MARGIN
from shadow.comparing.differences import FIGURES
from shadow.lab.calibration import (
    CONCENTRATED,
    DATA,
    MIN_BASES,
    MIN_TRAININGS,
    copy_labels,
    copy_rates,
    fit,
    label_rates,
    left_out_words,
    reference,
    verdict_rates,
)
from shadow.lab.design import COPIES, MAIN, REGIMES, SCALES, TREATMENTS
from shadow.lab.findings import (
    NO_ESTIMATE,
    NORM,
    OUTCOME,
    Control,
    Estimate,
    contrast,
    doses,
    gains,
    level,
    main_runs,
    separations,
    storage,
    treatments,
)
from shadow.lab.results import PROBES, final
from shadow.lab.tasks import World
from shadow.text import and_list, counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = (  # columns of the table of regimes
    "relative_norm", "concentration", "stable_rank", "participation_share", "effective_rank",
    "top4_energy",
    "spike_energy", "spikes", "depth_entropy", "effective_rank_shift",
)  # fmt: skip
COLOURS = {"A": "#7f7f7f", "B": "#d55e00", "C": "#0072b2", "D": "#009e73"}  # Okabe and Ito 2008
MADE = {"bf16": "both sides stored as bf16", "averaged": "weights averaged over runs"}
ABOUT_FIGURE = "Concentration by regime and base, along the runs, and of B and C by treatment"
MOST_COLUMNS = 24  # of the table of what separates
USELESS = (0.2, 0.8)  # between these AUCs a column does not tell B from C


def page(tables: dict[str, pd.DataFrame], preset: str) -> str:
    """The whole page, ending with a newline; the figure is beside it, as lab.svg."""
    runs, comparisons = tables["runs"], tables["comparisons"]
    parts = [_head(runs, preset), f"![{ABOUT_FIGURE}](lab.svg)"]
    for scale in SCALES:
        of_scale = main_runs(runs, scale)
        if len(of_scale):
            parts += [
                _regimes(of_scale, scale),
                _gains(of_scale, scale),
                _contrasts(of_scale, scale),
                _separation(of_scale, scale),
            ]
    parts += [
        _controls(runs),
        _doses(runs),
        _cold(runs),
        _rates(runs, comparisons),
        _words(runs),
        _limits(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def figure(tables: dict[str, pd.DataFrame], file: Path) -> None:
    """Concentration by regime and base, along the runs against the norm, and under every treatment.
    SVG, PNG or PDF.
    """
    runs = tables["runs"]
    with side_by_side(3, file, size=(10, 3.4)) as axes:
        _draw_bases(axes[0], runs)
        _draw_paths(axes[1], runs)
        _draw_treatments(axes[2], runs)


@contextlib.contextmanager
def side_by_side(count: int, file: Path, *, size: tuple[float, float]) -> Iterator[Sequence[Axes]]:
    """Axes in a row, saved to a file at the end: SVG, PNG or PDF.

    size: width and height of the figure in inches.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with mpl.rc_context(
        {
            "font.size": 8,
            "svg.hashsalt": "shadow",
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        drawn, axes = plt.subplots(1, count, figsize=size, layout="constrained", squeeze=False)
        yield list(axes[0])
        drawn.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=160)
        plt.close(drawn)


def _draw_bases(axis: Axes, runs: pd.DataFrame) -> None:
    last = final(main_runs(runs))
    bases = list(dict.fromkeys(last["base"]))
    for place, base in enumerate(bases):
        for number, regime in enumerate(MAIN):
            outcomes = last.loc[(last["base"] == base) & (last["regime"] == regime), OUTCOME]
            axis.scatter(
                [place + 0.18 * (number - 1.5)] * len(outcomes),
                outcomes,
                s=9,
                color=COLOURS[regime],
            )
    axis.set_xticks(
        range(len(bases)), [base.replace("-warm-", " ") for base in bases], rotation=60, ha="right"
    )
    axis.set_ylabel("median concentration")
    axis.set_title("last step, each run a dot", loc="left")
    handles = [axis.scatter([], [], s=12, color=COLOURS[regime], label=regime) for regime in MAIN]
    axis.legend(
        handles=handles,
        frameon=False,
        ncols=4,
        loc="upper right",
        columnspacing=0.6,
        handletextpad=0.1,
    )


def _draw_paths(axis: Axes, runs: pd.DataFrame) -> None:
    for (_, regime, _), states in main_runs(runs, "small").groupby(["base", "regime", "seed"]):
        path = states.sort_values("share")
        axis.plot(
            path[NORM].astype(float),
            path[OUTCOME].astype(float),
            color=COLOURS[str(regime)],
            lw=0.6,
            alpha=0.6,
        )
    axis.set_xscale("log")
    axis.set_xticks([0.02, 0.03, 0.04, 0.06], ["0.02", "0.03", "0.04", "0.06"])
    axis.minorticks_off()
    axis.set_xlabel("relative norm")
    axis.set_title("small bases, along the runs", loc="left")


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


# Markdown


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the rest are numbers."""
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def in_differences(error: float) -> str:
    """An error in units of B - C; above 10 its number says no more."""
    return f"{error:.2f}" if error < 10 else "over 10"


def formatted(value: float | None, digits: str = ".3f") -> str:
    """A number for a table, in a format of Python's; `-` where there is none."""
    if value is None or pd.isna(value):
        return "-"
    return format(value, digits)


def estimate(mean: Estimate, digits: str = ".3f") -> str:
    """`0.075 (0.068 to 0.083)`."""
    if mean.value is None:
        return "-"
    text = f"{mean.value:{digits}}"
    if mean.low is None or mean.high is None:
        return text
    return f"{text} ({mean.low:{digits}} to {mean.high:{digits}})"


NOTHING_LEARNED = "nothing was learned; the figures mean nothing"
LEARNED = 0.05  # the share of right answers from which a decoder has learned something


def learned(runs: pd.DataFrame) -> bool:
    """Does any base or continuation answer anything?"""
    answers = [f"{when}_{probe}" for when in ("base", "right") for probe in PROBES]
    return bool((final(runs)[answers].astype(float) >= LEARNED).to_numpy().any())


def _head(runs: pd.DataFrame, preset: str) -> str:
    last = final(runs)
    trained = last[last["kind"] == "trained"]
    minutes = counted(round(last["seconds"].sum() / 60), "minute", "minutes")
    trainings = counted(len(trained), "training", "trainings")
    bases = counted(last["base"].nunique(), "base", "bases")
    pairs = counted(len(last), "pair", "pairs")
    regimes = "\n".join(
        f"- **{name}**, {regime.name}: {regime.text}."
        for name, regime in REGIMES.items()
        if name in MAIN
    )
    warning = "" if learned(runs) else f"**{preset}: {NOTHING_LEARNED}.**\n\n"
    numbers = "There is one base of each size, so there are no intervals."
    if max(_bases_by_scale(runs), default=0) > 1:
        numbers = (
            "Numbers are means over bases, with 95 % t intervals over bases in brackets. The base"
            " is the unit,\nbecause the runs of one base are not independent."
        )
    return f"""# The lab: what the data leave in the weights of tiny decoders

{warning}Written by `shadow lab run --preset {preset}`: {trainings} of {bases},
{pairs}, all audited by the code of `shadow audit`; {minutes} of one core for the pairs. The
training of the bases comes on top. Bases are trained from random numbers. All but cold ones have
seen every skill and format at least rarely; the tables say how often they answer right.
Each base is trained further for equally many steps, on data that differ:

{regimes}

{numbers} Concentration and other columns are
medians over the matrices inside layers."""


def _bases_by_scale(runs: pd.DataFrame) -> list[int]:
    """How many warm bases each size has."""
    counts = main_runs(runs).groupby("scale")["base"].nunique()
    return [int(count) for count in counts]


def _regimes(runs: pd.DataFrame, scale: str) -> str:
    last = final(runs)
    names = [f"layers_{name}" if f"layers_{name}" in last else name for name in SHOWN]
    size = SCALES[scale].size.width
    rows = []
    for shown, name in zip(SHOWN, names, strict=True):
        if name in last:
            by_regime = level(last, name)
            rows.append([f"`{shown}`", *_values(by_regime)])
    probes = [
        [f"right: {probe}", *_values(by_regime, ".2f")]
        for probe in PROBES
        if (by_regime := level(last, f"right_{probe}"))
    ]
    bases = counted(last["base"].nunique(), "base", "bases")
    head = f"## {scale.capitalize()} decoders (width {size}, {bases}), last step"
    if scale == "large":
        head += f"\n\n{_not_of_the_law()}"
    return f"{head}\n\n{table(['', *MAIN], [*rows, *probes])}"


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
    narrow, held = (gained[probe].get("B", NO_ESTIMATE) for probe in ("narrow", "broad"))
    says = "Change of the share of right answers against the base."
    if narrow.low is not None and held.high is not None:
        wins = "wins" if narrow.low > 0 else "does not clearly win"
        wins += " on its benchmark"
        loses = "loses breadth" if held.high < 0 else "does not clearly lose breadth"
        says += (
            f" B {wins} ({estimate(narrow, '+.3f')}) and {loses} ({estimate(held, '+.3f')} on the"
            " broad cells)."
        )
    return (
        "### Does B win on its benchmark and lose breadth?"
        f" ({scale})\n\n{says}\n\n{table(['probe', *MAIN], rows)}"
    )


def _contrasts(runs: pd.DataFrame, scale: str) -> str:
    pairs = {
        "B - C": "narrow against broad",
        "B - A": "narrow against the original mixture",
        "D - A": "ten-fold repetition of a fifth against none",
        "C - A": "broad against the original mixture",
    }
    rows = []
    for name, what in pairs.items():
        difference = contrast(runs, name[0], name[-1])
        rows.append([f"{name}: {what}", estimate(difference, "+.3f"), _says(difference)])
    text = f"### Differences in concentration ({scale})\n\n" + table(
        ["", "difference", f"margin {MARGIN:g}"], rows
    )
    broad = contrast(runs, "C", "A")
    lower = broad.high is not None and broad.high < 0
    if broad.value is not None and not lower and learned(runs):
        text += (
            "\n\nBroad data are **not** seen to be less concentrated than the original mixture:"
            " what is measured is that narrow data concentrate."
        )
    return text


def _says(difference: Estimate) -> str:
    if not difference.bases:
        return "-"
    if difference.low is None:
        return "one base: no interval"
    if difference.within(MARGIN):
        return "within: no difference that counts"
    if difference.excludes_zero and abs(difference.value or 0) >= MARGIN:
        return "beyond"
    return "undecided"


def _separation(runs: pd.DataFrame, scale: str) -> str:
    ranked = separations(runs)
    votes = {f"layers_{figure.name}" for figure in FIGURES if figure.direction} | {
        "layers_participation_share"
    }
    rows = []
    for separated in ranked[:MOST_COLUMNS]:
        name = f"`{separated.column.removeprefix('layers_')}`"
        if separated.column in votes:
            name += " (votes)"
        distance = None
        if separated.spread:
            distance = abs(separated.difference.value or 0) / separated.spread
        rows.append(
            [
                name,
                estimate(separated.difference, "+.3g"),
                formatted(distance, ".1f"),
                formatted(separated.auc, ".2f"),
                estimate(separated.at_norm, "+.3g"),
                formatted(separated.auc_at_norm, ".2f"),
            ]
        )
    useless = [
        f"`{separated.column.removeprefix('layers_')}` ({formatted(separated.auc, '.2f')})"
        for separated in ranked[MOST_COLUMNS:]
        if separated.auc is not None and USELESS[0] < separated.auc < USELESS[1]
    ]
    heads = ["column", "B - C", "in sd of seeds", "AUC", "B - C at equal norm", "AUC at equal norm"]
    note = ""
    if useless:
        note = (
            f"\n\nNo use for telling B from C (AUC between {USELESS[0]:g} and {USELESS[1]:g}; 0.5"
            f" is chance): {', '.join(useless)}."
        )
        if any("`spikes`" in column for column in useless):
            note += (
                " `spikes` has another purpose: it counts the directions of one change that stand"
                " out from noise, whatever the data."
            )
    return (
        f"### Which columns separate B from C? ({scale})\n\nThe {min(len(ranked), MOST_COLUMNS)}"
        f" best of {len(ranked)}, by AUC within bases; an AUC of 0 separates as well as one of 1."
        " The order was chosen on these runs, but that `concentration` is the outcome was decided"
        f" before any run.\n\n{table(heads, rows)}{note}"
    )


def _rows_of(controls: Sequence[Control], name: Callable[[Control], str]) -> list[list[str]]:
    return [
        [
            name(control),
            str(control.runs),
            formatted(control.relative_norm),
            estimate(control.concentration),
            estimate(control.change, "+.3f"),
        ]
        for control in controls
    ]


def _controls(runs: pd.DataFrame) -> str:
    parts = []
    for scale in SCALES:
        treated = treatments(runs, scale)
        if len({control.treatment for control in treated}) > 1:
            heads = [
                "treatment",
                "runs",
                "relative norm",
                "concentration",
                "against AdamW, same data",
            ]
            rows = _rows_of(
                treated, lambda control: f"{control.regime}, {TREATMENTS[control.treatment].text}"
            )
            within = f"B - C within each: {'; '.join(_gaps(treated))}."
            parts.append(f"### {scale.capitalize()} decoders\n\n{table(heads, rows)}\n\n{within}")
        kept = storage(runs, scale)
        if kept:
            heads = ["", "runs", "relative norm", "concentration", "against the runs it is made of"]
            rows = _rows_of(kept, lambda control: f"{control.regime}: {MADE[control.kind]}")
            parts.append(f"### Storage and averaging ({scale})\n\n{table(heads, rows)}")
    if not parts:
        return ""
    text = "## What else moves it\n\nOne change at a time, on the same bases and data."
    return "\n\n".join([text, *parts])


def _gaps(controls: Sequence[Control]) -> list[str]:
    """B - C within every treatment that has both."""
    values = {
        (control.treatment, control.regime): control.concentration.value for control in controls
    }
    return [
        f"{TREATMENTS[name].text} {first - second:+.3f}"
        for name in TREATMENTS
        if (first := values.get((name, "B"))) is not None
        and (second := values.get((name, "C"))) is not None
    ]


def _doses(runs: pd.DataFrame) -> str:
    controls = doses(runs, "small")
    if len(controls) <= len(MAIN):
        return ""
    heads = ["data", "runs", "relative norm", "concentration", "against A, same bases"]
    rows = _rows_of(controls, lambda control: f"{control.regime}: {REGIMES[control.regime].text}")
    return f"## Doses of narrowness, novelty and repetition (small)\n\n{table(heads, rows)}"


def _cold(runs: pd.DataFrame) -> str:
    controls = doses(runs, "small", warm=False)
    if not controls:
        return ""
    heads = ["data", "runs", "relative norm", "concentration", "against A, same bases"]
    rows = _rows_of(controls, lambda control: f"{control.regime}: {REGIMES[control.regime].text}")
    text = (
        "## Cold bases\n\nThese bases have seen the core alone: the other skills and formats are"
        " new to them. **Novelty concentrates a delta as narrowness does**, so a concentrated delta"
        " may come from either."
    )
    return f"{text}\n\n{table(heads, rows)}"


def rates_table(rates: Iterable[Rate]) -> str:
    heads = ["", "cases", "bases with any", "95 % for the share of bases"]
    return table(
        heads,
        [
            [
                rate.what,
                f"{rate.errors} of {rate.cases}",
                f"{rate.affected} of {rate.bases}",
                f"{rate.low:.2f} to {rate.high:.2f}",
            ]
            for rate in rates
        ],
    )


def _rates(runs: pd.DataFrame, comparisons: pd.DataFrame) -> str:
    rates = [*label_rates(reference(runs)), *copy_rates(runs)]
    if len(comparisons):
        rates = [*verdict_rates(comparisons), *rates]
    if not rates:
        return ""
    margin = margin_words(comparisons)
    return (
        "## How often it errs\n\n`shadow compare` was tried on every two runs of a base, A to D"
        " with AdamW at one rate; the label on every training with bounds fitted without its base."
        f" Intervals are those of Clopper and Pearson, over bases.{margin and ' ' + margin}"
        f"\n\n{rates_table(rates)}"
    )


SEEDS = "two seeds of the same data"
NARROW_AND_BROAD = "B and C: narrow and broad data"
NEW_TO_BASE = f"{NARROW_AND_BROAD}, on bases that have not met them"


def _kinds_of_pairs(comparisons: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The pairs that a margin must keep apart, by what the two runs differ in; kinds of which there
    is a pair.
    """
    pair = comparisons["regime_first"] + comparisons["regime_second"]
    cold = comparisons["base"].str.contains("-cold-")
    kinds = {
        SEEDS: comparisons["regime_first"] == comparisons["regime_second"],
        "A and D: without repetition and with it": pair == "AD",
        NARROW_AND_BROAD: (pair == "BC") & ~cold,
        NEW_TO_BASE: (pair == "BC") & cold,
    }
    return {what: comparisons[chosen] for what, chosen in kinds.items() if chosen.any()}


def _outside(comparisons: pd.DataFrame) -> int:
    """In how many of them 0 lies outside the spread over layers."""
    return int(((comparisons["low"] > 0) | (comparisons["high"] < 0)).sum())


def _called(comparisons: pd.DataFrame) -> int:
    """How many verdicts say that one run is more concentrated than the other."""
    return int(comparisons["verdict"].isin(CONCENTRATED).sum())


def margin_table(comparisons: pd.DataFrame, pretrained: pd.DataFrame) -> str:
    """How large differences are where the data are the same, and where they are not.

    pretrained: the comparisons of the pretrained decoder, as `pretrained_verdicts` has them.
    """
    in_float = pretrained[pretrained["stored"] == "F32"]
    kinds = {
        **_kinds_of_pairs(comparisons),
        **{
            f"{what}, pretrained decoder": chosen
            for what, chosen in _kinds_of_pairs(in_float).items()
        },
    }
    heads = ["", "pairs", "difference", "0 outside the spread", "called more or less concentrated"]
    rows = []
    for what, chosen in kinds.items():
        sizes = chosen["difference"].abs()
        rows.append(
            [
                what,
                str(len(chosen)),
                f"{sizes.min():.3f} to {sizes.max():.3f}",
                str(_outside(chosen)),
                str(_called(chosen)),
            ]
        )
    return table(heads, rows)


def margin_words(comparisons: pd.DataFrame) -> str:
    """Where the margin lies among differences of seeds and of data, in a few sentences; empty where
    the pairs for it are missing.
    """
    if comparisons.empty:
        return ""
    kinds = _kinds_of_pairs(comparisons)
    if not {SEEDS, NARROW_AND_BROAD} <= set(kinds):
        return ""
    seeds, true = kinds[SEEDS]["difference"].abs().max(), kinds[NARROW_AND_BROAD]
    low, high = true["difference"].min(), true["difference"].max()
    place = "below" if low >= MARGIN else "inside"
    over = "above all differences of seeds" if seeds < MARGIN else "below some of seeds"
    missed = true[true["verdict"] != "more concentrated"]
    under = int((missed["difference"] < MARGIN).sum())
    text = (
        f"Two seeds of the same data differ by at most {seeds:.3f} in concentration (the median of"
        f" paired differences), B and C by {low:.3f} to {high:.3f} on warm bases. So the margin of"
        f" `shadow compare`, {MARGIN:g}, lies {over} and {place} the range of B and C."
        f" It misses {len(missed)} of {len(true)} pairs of B and C: {under} differ by less than the"
        f" margin; in {len(missed) - under} the spread or the other figures do not agree."
    )
    if NEW_TO_BASE in kinds:
        cold = kinds[NEW_TO_BASE]
        lost = int((cold["verdict"] != "more concentrated").sum())
        text += f" On bases that have not met the data it misses {lost} of {len(cold)}."
    return text


def treatment_words(runs: pd.DataFrame) -> str:
    """How far B and C are apart under treatments that were not compared pair by pair."""
    treated = treatments(runs, "small")
    adapter = " and ".join(
        f"{control.change.value:.3f} ({control.regime})"
        for control in treated
        if control.treatment == "lora" and control.change.value is not None
    )
    return (
        "Those pairs are of AdamW at one rate. The mean of B - C in the small decoders of the lab"
        f" is, by treatment: {'; '.join(_gaps(treated))}. Where it is below {MARGIN:g}, expect"
        " `compare` to miss the difference."
        f" {TREATMENTS['lora'].text.split(',')[0]} by itself adds {adapter}."
    )


def seed_words(comparisons: pd.DataFrame) -> str:
    """What the spread over layers does not cover, measured on runs that differ in their seed."""
    seeds = _kinds_of_pairs(comparisons)[SEEDS]
    return (
        f"In the lab, 0 lies outside this spread for {_outside(seeds)} of {len(seeds)} pairs of"
        " runs that differ in their seed alone, and such pairs differ by up to"
        f" {seeds['difference'].abs().max():.3f} in concentration. So `compare` calls no difference"
        f" below its margin of {MARGIN:g}; do the same if you hold two summaries side by side."
    )


def reliance_words(tables: Mapping[str, pd.DataFrame]) -> str:
    """What `shadow compare` found and missed in the lab, in a few sentences."""
    kinds = _kinds_of_pairs(tables["comparisons"])
    seeds = kinds[SEEDS]
    missed, cold = (
        f"{int((chosen['verdict'] != 'more concentrated').sum())} of {len(chosen)}"
        for chosen in (kinds[NARROW_AND_BROAD], kinds[NEW_TO_BASE])
    )
    means = {
        (control.treatment, control.regime): control.concentration.value
        for control in treatments(tables["runs"], "small")
    }
    close = [
        TREATMENTS[name].text.split(",")[0]
        for name in TREATMENTS
        if (narrow := means.get((name, "B"))) is not None
        and (broad := means.get((name, "C"))) is not None
        and abs(narrow - broad) < MARGIN
    ]
    return (
        f"In the lab, with AdamW, `compare` called {_called(seeds)} of {len(seeds)} pairs that"
        " differ in their seed alone more or less concentrated."
        f" It missed {missed} pairs of narrow and broad data, and {cold} on bases to which the data"
        f" were new. With {and_list(close)}, narrow and broad data differ by less than its margin."
    )


def _words(runs: pd.DataFrame) -> str:
    """Labels of left-out trainings by regime, and of the pairs that no training made."""
    trainings = reference(runs)
    words = left_out_words(trainings, known=True)
    parts = []
    if len(words):
        kinds = ("concentrated", "mixed", "distributed", "not assessable")
        rows = [
            [
                f"{regime}, {TREATMENTS[str(treatment)].text}",
                *(str(int((labels == kind).sum())) for kind in kinds),
            ]
            for (treatment, regime), labels in words.groupby(["treatment", "regime"])["word"]
        ]
        heads = ["", *kinds]
        parts.append(
            f"### Labels of trainings, optimiser given\n\n{_data_words(words)}\n\n"
            f"{table(heads, rows)}"
        )
    bounds = [
        [
            f"{fitted.short_side}, {fitted.optimizer or 'any'}", str(fitted.narrow),
            str(fitted.broad),
            formatted(fitted.bounds["concentration"].concentrated),
            formatted(fitted.bounds["concentration"].distributed),
        ]
        for fitted in fit(trainings)
    ]  # fmt: skip
    if bounds:
        heads = [
            "short side, optimiser",
            "narrow",
            "broad",
            "concentrated above",
            "distributed below",
        ]
        few = (
            f"Fewer than {MIN_TRAININGS} trainings of a kind, or than {MIN_BASES} bases, make no"
            " bounds."
        )
        parts.append(f"### Bounds of concentration\n\n{few}\n\n{table(heads, bounds)}")
    copies = copy_labels(runs)
    if len(copies):
        rows = [
            [
                COPIES[str(how)],
                str(len(group)),
                formatted(group["concentration"].astype(float).median()),
                _copy_labels(group),
            ]
            for how, group in copies.groupby("regime")
        ]
        parts.append(
            "### Pairs that no training"
            f" made\n\n{table(['', 'pairs', 'concentration', 'labels'], rows)}"
        )
    return "\n\n".join(parts)


def _data_words(words: pd.DataFrame) -> str:
    """Which regimes count as narrow and as broad data, and how many trainings each has."""
    told = []
    for data in ("narrow", "broad"):
        names = and_list([name for name, kind in DATA.items() if kind == data])
        told.append(f"{data} data are {names} ({int((words['data'] == data).sum())})")
    return (
        f"In the rates of labels, {'; '.join(told)}. Dilutions and a hundredfold repetition are"
        " neither. *Not assessable*: the relative norm lies outside those of the other bases'"
        " trainings; a narrow one of these counts as not called concentrated."
    )


def _copy_labels(copies: pd.DataFrame) -> str:
    """How many copies have each label, with the gates that stopped one."""
    labels = copies["label"] + copies["stopped"].map(
        lambda gates: f" ({gates.replace(',', ', ')})" if gates else ""
    )
    return ", ".join(f"{count} {text}" for text, count in Counter(labels).most_common())


def _limits() -> str:
    return """## Limits

The lab has one family of synthetic tasks and four-layer decoders of 0.2 and 0.8 million parameters;
the models that people audit are ten thousand times larger. Breadth, variety of tokens and variety
of answers change together between B and C. The bases of one scale differ in their seed alone. The
lab shows that narrow data concentrate a delta here. It does not show that a concentrated delta
comes from narrow data: novelty of the data, LoRA, a small learning rate and heavy repetition
concentrate it too, and Muon removes the concentration."""
