"""What the margin of `shadow compare` rests on, and what it found and missed in the lab, in tables
and sentences for the documentation.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from calibration import CONCENTRATED
from contrasts import Control, treatments
from page_table import table
from shadow.comparing.comparison import MARGIN
from shadow.lab.design import TREATMENTS
from shadow.text import and_list

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


def _missed(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Those in which the first run is not called more concentrated."""
    return comparisons[comparisons["verdict"] != "more concentrated"]


def margin_table(comparisons: pd.DataFrame, pretrained: pd.DataFrame) -> str:
    """How large differences are where the data are the same, and where they are not.

    pretrained: the comparisons of the pretrained decoder, as `pretrained_verdicts` has them.
    """
    in_float = _kinds_of_pairs(pretrained[pretrained["stored"] == "F32"])
    kinds = _kinds_of_pairs(comparisons)
    kinds |= {f"{what}, pretrained decoder": chosen for what, chosen in in_float.items()}
    heads = ["", "pairs", "difference", "0 outside the spread", "called more or less concentrated"]
    rows = []
    for what, chosen in kinds.items():
        sizes = chosen["difference"].abs()
        range_ = f"{sizes.min():.3f} to {sizes.max():.3f}"
        rows.append([what, str(len(chosen)), range_, str(_outside(chosen)), str(_called(chosen))])
    return table(heads, rows)


def margin_words(comparisons: pd.DataFrame) -> str:
    """Where the margin lies among differences of seeds and of data, in a few sentences; empty where
    the pairs for it are missing.
    """
    kinds = _kinds_of_pairs(comparisons) if len(comparisons) else {}
    if not {SEEDS, NARROW_AND_BROAD} <= set(kinds):
        return ""
    seeds, true = kinds[SEEDS]["difference"].abs().max(), kinds[NARROW_AND_BROAD]
    low, high = true["difference"].min(), true["difference"].max()
    where = "below" if low >= MARGIN else "inside"
    over = "above all differences of seeds" if seeds < MARGIN else "below some of seeds"
    missed = _missed(true)
    under = int((missed["difference"] < MARGIN).sum())
    text = (
        f"Two seeds of the same data differ by at most {seeds:.3f} in concentration (the median of"
        f" paired differences), B and C by {low:.3f} to {high:.3f} on warm bases. So the margin of"
        f" `shadow compare`, {MARGIN:g}, lies {over} and {where} the range of B and C."
        f" It misses {len(missed)} of {len(true)} pairs of B and C: {under} differ by less than the"
        f" margin; in {len(missed) - under} the spread or the other figures do not agree."
    )
    if NEW_TO_BASE in kinds:
        cold = kinds[NEW_TO_BASE]
        text += (
            f" On bases that have not met the data it misses {len(_missed(cold))} of {len(cold)}."
        )
    return text


def _gaps(controls: list[Control]) -> dict[str, float]:
    """B - C within every treatment that has both, by its text."""
    values = {
        (control.treatment, control.regime): control.concentration.value for control in controls
    }
    return {
        treatment.text: first - second
        for name, treatment in TREATMENTS.items()
        if (first := values.get((name, "B"))) is not None
        and (second := values.get((name, "C"))) is not None
    }


def gap_words(controls: list[Control]) -> str:
    """B - C within every treatment, in a line."""
    return "; ".join(f"{text} {gap:+.3f}" for text, gap in _gaps(controls).items())


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
        f" is, by treatment: {gap_words(treated)}. Where it is below {MARGIN:g}, expect"
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
        f"{len(_missed(kinds[kind]))} of {len(kinds[kind])}"
        for kind in (NARROW_AND_BROAD, NEW_TO_BASE)
    )
    gaps = _gaps(treatments(tables["runs"], "small"))
    close = [text.split(",")[0] for text, gap in gaps.items() if abs(gap) < MARGIN]
    return (
        f"In the lab, with AdamW, `compare` called {_called(seeds)} of {len(seeds)} pairs that"
        " differ in their seed alone more or less concentrated."
        f" It missed {missed} pairs of narrow and broad data, and {cold} on bases to which the data"
        f" were new. With {and_list(close)}, narrow and broad data differ by less than its margin."
    )
