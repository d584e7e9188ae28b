"""The tables of the lab -> the reference that labels are held against, and how often labels and
verdicts err.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

import pandas as pd
from scipy.stats import binomtest

from shadow.claims.label import label
from shadow.claims.reference import AXES, OPTIMIZERS, Bound, Rate, Trainings, choose, word
from shadow.lab.estimates import final
from shadow.lab.experiment import DESIGN

VERSION = 2  # of calibration.json; raised when a bound changes its meaning
MIN_TRAININGS, MIN_BASES = 10, 3  # of each kind, below which an extreme of them is no bound
# what a training is in the reference; dilutions and heavy repetition are neither
DATA: Mapping[str, str] = {
    **dict.fromkeys(("B", "Bk", "Bn"), "narrow"),
    **dict.fromkeys(("A", "C", "D", "Cn", "Cf", "A x10"), "broad"),
}
IDENTITY = ("short_side", "optimizer", "treatment", "regime", "data", "base", "seed")
JUDGED = (
    "relative_norm", "concentration", "stable_rank", "top4_energy", "participation_share",
    "spike_energy", "embedding_row_participation_ratio", "attention_to_mlp",
)  # fmt: skip
CONCENTRATED = ("more concentrated", "less concentrated")
OPPOSITE_VERDICT = dict(zip(CONCENTRATED, reversed(CONCENTRATED), strict=True))


def reference(runs: pd.DataFrame) -> pd.DataFrame:
    """The trainings of full rank from warm bases, with what a label is held against."""
    trainings = final(runs)
    trainings = trainings[
        (trainings["kind"] == "trained")
        & trainings["warm"].astype(bool)
        & trainings["method"].isin(OPTIMIZERS)
    ]
    table = trainings.assign(
        short_side=trainings["width"],
        optimizer=trainings["method"],
        data=trainings["regime"].map(DATA).fillna("other"),
    )[[*IDENTITY, *JUDGED]]
    # as runs.csv has them
    table[[*JUDGED]] = table[[*JUDGED]].map(lambda value: float(f"{value:.6g}"))
    return table.sort_values([*IDENTITY], kind="stable").reset_index(drop=True)


def fit(table: pd.DataFrame) -> list[Trainings]:
    """The bounds of every size with every optimiser that has enough trainings, and with any where
    it has them all.
    """
    fitted = []
    for side, of_size in table.groupby("short_side"):
        for optimizer in (None, *OPTIMIZERS):
            own = of_size if optimizer is None else of_size[of_size["optimizer"] == optimizer]
            narrow, broad = (own[own["data"] == data] for data in ("narrow", "broad"))
            complete = optimizer is not None or set(OPTIMIZERS) <= set(own["optimizer"])
            enough = all(
                len(kind) >= MIN_TRAININGS and kind["base"].nunique() >= MIN_BASES
                for kind in (narrow, broad)
            )
            if not complete or not enough:
                continue
            norms = pd.concat([narrow["relative_norm"], broad["relative_norm"]])
            fitted.append(
                Trainings(
                    short_side=int(str(side)),
                    optimizer=optimizer,
                    narrow=len(narrow),
                    broad=len(broad),
                    norms=(float(norms.min()), float(norms.max())),
                    bounds={
                        name: bound(narrow[name], broad[name], way) for name, way in AXES.items()
                    },
                )
            )
    return fitted


def bound(narrow: pd.Series[float], broad: pd.Series[float], way: int) -> Bound:
    """The extremes of the two kinds, or the middle between them where they do not overlap."""
    most, least = way * (way * broad).max(), way * (way * narrow).min()
    if way * most < way * least:
        most = least = (most + least) / 2
    return Bound(float(most), float(least))


def rate(what: str, errors: pd.Series[bool], bases: pd.Series[str]) -> Rate:
    """Errors of cases, with a Clopper-Pearson interval for the share of bases that have any."""
    by_base = errors.groupby(bases).any()
    bounds = binomtest(int(by_base.sum()), len(by_base)).proportion_ci()
    return Rate(
        what=what,
        errors=int(errors.sum()),
        cases=len(errors),
        affected=int(by_base.sum()),
        bases=len(by_base),
        low=round(float(bounds.low), 4),
        high=round(float(bounds.high), 4),
    )


PAIR = ["base", "regime_first", "seed_first", "regime_second", "seed_second"]  # of comparisons


def verdict_rates(comparisons: pd.DataFrame, where: str = "") -> list[Rate]:
    """False alarms and misses of `shadow compare`, small and large bases together; every training
    is AdamW's.

    Two runs that were compared in several formats are one case, which errs if it errs in any of
    them. Misses are counted apart for warm bases and for cold ones: to these, broad data are new,
    which concentrates as narrowness does. where: ends what each rate is of, such as `, on a
    pretrained decoder`.
    """
    kinds = comparisons["regime_first"] + comparisons["regime_second"]
    verdicts, cold = comparisons["verdict"], comparisons["base"].str.contains("-cold-")
    same, main = comparisons["regime_first"] == comparisons["regime_second"], kinds == "BC"
    called = verdicts.isin(CONCENTRATED)
    missed, turned = verdicts != "more concentrated", verdicts == "less concentrated"
    lost = "narrow (B) not called more concentrated than broad (C)"
    reverse = "narrow (B) called less concentrated than broad (C)"
    new = ", on a base that has not met its data"
    cases = [
        ("two seeds of one regime called more or less concentrated", same, called),
        (
            "repetition (D) and its control (A) called more or less concentrated",
            kinds == "AD",
            called,
        ),
        (lost, main & ~cold, missed),
        (reverse, main & ~cold, turned),
        (f"{lost}{new}", main & cold, missed),
        (f"{reverse}{new}", main & cold, turned),
    ]
    rates = []
    for what, chosen, errors in cases:
        if chosen.any():
            pairs = [comparisons.loc[chosen, name] for name in PAIR]
            by_pair = errors[chosen].groupby(pairs).any()
            of = f"compare (AdamW): {what}{where}"
            rates.append(rate(of, by_pair, by_pair.index.to_frame()["base"]))
    return rates


def pretrained_verdicts(compared: pd.DataFrame) -> pd.DataFrame:
    """The table `pretrained-comparisons` as the lab's table `comparisons` has it, with storage: of
    every two runs, the one whose data come first in the alphabet comes first.
    """
    rows = []
    for row in compared.to_dict("records"):
        runs = [str(row[side]) for side in ("first", "second")]
        verdict, turned = str(row["verdict"]), -1 if runs[0] > runs[1] else 1
        if turned < 0:
            runs, verdict = runs[::-1], OPPOSITE_VERDICT.get(verdict, verdict)
        (first, _, seed_first), (second, _, seed_second) = (run.split("-") for run in runs)
        rows.append(
            {
                "base": "pretrained",
                "stored": row["stored"],
                "regime_first": first,
                "seed_first": int(seed_first),
                "regime_second": second,
                "seed_second": int(seed_second),
                "verdict": verdict,
                "difference": turned * row["difference"],
                "low": min(turned * row["low"], turned * row["high"]),
                "high": max(turned * row["low"], turned * row["high"]),
            }
        )
    return pd.DataFrame(rows)


def pretrained_rates(compared: pd.DataFrame) -> list[Rate]:
    """The same of the continuations of the pretrained decoder: a pair errs if it does in F32 or in
    BF16.

    compared: their table `pretrained-comparisons`.
    """
    where = ", on a pretrained decoder, in F32 or BF16"
    return verdict_rates(pretrained_verdicts(compared), where=where)


def all_rates(tables: Mapping[str, pd.DataFrame], compared: pd.DataFrame) -> list[Rate]:
    """What calibration.json has of the lab's tables and of the pretrained decoder's comparisons."""
    return [
        *verdict_rates(tables["comparisons"]),
        *label_rates(reference(tables["runs"])),
        *copy_rates(tables["runs"]),
        *pretrained_rates(compared),
    ]


def left_out_words(table: pd.DataFrame, *, known: bool) -> pd.DataFrame:
    """The word that each training gets from bounds fitted without its base.

    Only sizes with more than one base: what is left must hold a reference. known: whether the
    optimiser is given.
    """
    rows = []
    for base in sorted(set(table["base"])):
        fitted = fit(table[table["base"] != base])
        for row in table[table["base"] == base].to_dict("records"):
            bounds = choose(fitted, row["short_side"], row["optimizer"] if known else None)
            if bounds is not None and bounds.short_side == row["short_side"]:
                rows.append({**row, "word": word(row, bounds)[0]})
    return pd.DataFrame(rows, columns=[*table.columns, "word"])


def label_rates(table: pd.DataFrame) -> list[Rate]:
    """How often the label of one pair says the opposite of the data, and how often nothing."""
    rates = []
    for known, given in ((True, "its optimiser given"), (False, "its optimiser not given")):
        words = left_out_words(table, known=known)
        broad, narrow = (words[words["data"] == data] for data in ("broad", "narrow"))
        for what, cases, errors in (
            ("broad data called concentrated", broad, broad["word"] == "concentrated"),
            ("narrow data called distributed", narrow, narrow["word"] == "distributed"),
            ("narrow data not called concentrated", narrow, narrow["word"] != "concentrated"),
        ):
            if len(cases):
                rates.append(rate(f"label: {what}, {given}", errors, cases["base"]))
    return rates


def copy_labels(runs: pd.DataFrame) -> pd.DataFrame:
    """Copies of bases, each with the label that it gets against bounds fitted without its base."""
    trainings, last = reference(runs), final(runs)
    rows = []
    for base, copies in last[last["kind"] == "copied"].groupby("base"):
        fitted = fit(trainings[trainings["base"] != base])
        for record in copies.astype(object).where(copies.notna(), None).to_dict("records"):
            row = {str(name): value for name, value in record.items()}
            stopped = [gate for gate in row["stopped"].split(",") if gate]
            given, _ = label(
                stopped, row, trainings=choose(fitted, row["width"], None), unlike="no reference"
            )
            rows.append({**row, "label": given})
    return pd.DataFrame(rows, columns=[*last.columns, "label"])


def copy_rates(runs: pd.DataFrame) -> list[Rate]:
    """How often the label takes a copy for a training, and how often it misses a planted change."""
    copies = copy_labels(runs)
    if copies.empty:
        return []
    planted = copies["regime"] == "planted"
    none, strong = copies[~planted], copies[planted]
    called = none["label"].isin(["concentrated", "distributed"])
    missed = strong["label"] != "concentrated"
    return [
        rate(
            "label: a rounded, noisy, unrelated or identical copy called either",
            called,
            none["base"],
        ),
        rate(
            "label: four planted directions in noise not called concentrated",
            missed,
            strong["base"],
        ),
    ]


def calibration_json(table: pd.DataFrame, rates: list[Rate], made: Mapping[str, object]) -> str:
    """calibration.json: bounds fitted from a reference table, and error rates."""
    content = {
        "version": VERSION,
        "made": {**made, "design": DESIGN},
        "trainings": [asdict(entry) for entry in fit(table)],
        "rates": [asdict(entry) for entry in rates],
    }
    return json.dumps(content, indent=1) + "\n"


def reference_csv(table: pd.DataFrame) -> str:
    """runs.csv, numbers to six digits."""
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
