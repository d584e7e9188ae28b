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

from shadow.findings.comparison import FIGURES, MARGIN
from shadow.findings.reference import Rate
from shadow.lab.calibration import (
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
from shadow.text import counted

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


def _head(runs: pd.DataFrame, preset: str) -> str:
    last = final(runs)
    trained = last[last["kind"] == "trained"]
    seconds = last["seconds"].sum()
    regimes = "\n".join(
        f"- **{name}**, {regime.name}: {regime.text}."
        for name, regime in REGIMES.items()
        if name in MAIN
    )
    return f"""# The lab: what the data leave in the weights of tiny decoders

Written by `shadow lab run --preset {preset}`: {len(trained)} trainings of {last["base"].nunique()}
bases, {len(last)} pairs, all audited by the code of `shadow audit`; {seconds / 60:.0f} minutes of
one core for the pairs. The bases are trained from random numbers until they answer, and have seen
every skill and format at least rarely. Each base is trained further for equally many steps, on data
that differ:

{regimes}

Numbers are means over bases, with 95 % t intervals over bases in brackets. The base is the unit,
because the runs of one base are not independent. Concentration and other columns are medians over
the matrices inside layers."""


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
    return f"{head}\n\n{table(['', *MAIN], [*rows, *probes])}"


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
    if broad.value is not None and not (broad.high is not None and broad.high < 0):
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
        if separated.auc is not None and 0.2 < separated.auc < 0.8
    ]
    heads = ["column", "B - C", "in sd of seeds", "AUC", "B - C at equal norm", "AUC at equal norm"]
    note = ""
    if useless:
        note = f"\n\nNo use for telling them apart (AUC): {', '.join(useless)}."
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
    return (
        "## How often it errs\n\n`shadow compare` was tried on every two runs of a base, the label"
        " on every training with bounds fitted without its base. Intervals are those of Clopper"
        f" and Pearson, over bases.{_sizes(comparisons)}\n\n{rates_table(rates)}"
    )


def _sizes(comparisons: pd.DataFrame) -> str:
    """How large differences are where there is none to find, and where there is one: what the
    margin rests on.
    """
    if comparisons.empty:
        return ""
    warm = comparisons[~comparisons["base"].str.contains("-cold-")]
    same = warm.loc[warm["regime_first"] == warm["regime_second"], "difference"].abs()
    true = warm.loc[(warm["regime_first"] == "B") & (warm["regime_second"] == "C"), "difference"]
    if same.empty or true.empty:
        return ""
    return (
        " Paired differences in concentration of two seeds of one regime were at most"
        f" {same.max():.3f}, of B and C at least {true.min():.3f} (warm bases); the margin of"
        f" `shadow compare` is {MARGIN:g}."
    )


def _words(runs: pd.DataFrame) -> str:
    """Labels of left-out trainings by regime, and of the pairs that no training made."""
    trainings = reference(runs)
    words = left_out_words(trainings, known=True)
    parts = []
    if len(words):
        kinds = ("concentrated", "mixed", "distributed")
        rows = [
            [
                f"{regime}, {TREATMENTS[str(treatment)].text}",
                *(str(int((labels == kind).sum())) for kind in kinds),
            ]
            for (treatment, regime), labels in words.groupby(["treatment", "regime"])["word"]
        ]
        parts.append(f"### Labels of trainings, optimiser given\n\n{table(['', *kinds], rows)}")
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
