"""What the headline of a finding says of a pair, held against the truth."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from judging import (
    BEFORE,
    ELSEWHERE,
    FIGURE,
    PARTS,
    STORED,
    WORDS,
    Case,
    Judged,
    copied,
    few_entries,
    judged_directions,
    low_rank,
    missing,
    names_at,
    noise,
    of_few,
    only_moved,
    only_rounded,
    replaced,
    rounded_away,
    rounding,
    unrelated,
    way_of,
    zeroed,
)
from stated import held, size_in, written
from truths import place_of

IN_HEADLINES: Mapping[str, Callable[[Case, str, Mapping[str, float]], Judged]] = {
    "unrelated|Not comparable": unrelated, "unlike the base's": replaced,
    "rounded away": rounded_away, "about as large as its rounding": rounding,
    "by setting entries to 0": zeroed,
    "at other numbers|exchanged": only_moved,
    "flatter than noise|like noise|partly with more structure": noise,
}  # fmt: skip


def headline(case: Case) -> Judged:
    text, truth, made = case.finding.headline, case.truth, case.made
    yield from only_rounded(case, text)
    for words, judge in IN_HEADLINES.items():
        if re.search(words, text):
            yield from judge(case, text, {})
    if re.search("not comparable entry by entry|Nothing in common", text):
        yield made.apart or case.is_true(*ELSEWHERE), f"done was: {case.pair.name}"
    if found := re.match(r"Missing: ([^.]*(?:\.\w[^.]*)*)\.", text):
        yield from missing(case, found[1])
    if "Only biases and norms" in text or "Every matrix that was compared is the same" in text:
        yield not truth.changed, f"{len(truth.changed)} matrices changed"
    if found := re.search(r"in ([\d,]+) entr", text):
        entries = float(found[1].replace(",", ""))
        yield from few_entries(case, text, {"recognised.few_entries.entries": entries})
    if "copy of the base" in text:
        yield copied(case, text)
    if "The weights are the same" in text:
        yield not truth.difference, f"{len(truth.difference)} tensors changed"
    way = way_of(case, "quantised_copy")
    if "copy in 8 or 4 bits" in text and way is not None:
        yield way, "the change is another than the rounding of a copy in few bits"
    if found := re.search(r"\bof rank ([\d,]+)", text):
        recorded = float(found[1].replace(",", ""))
        yield from low_rank(case, text, {"inside_layers.rank_most": recorded})
    if found := re.search(r"spread over ([\d,.]+)(?: to ([\d,.]+))? directions", text):
        values = [float(one.rstrip(".").replace(",", "")) for one in found.groups() if one]
        names = case.known("equivalent_directions")
        yield from of_few(case, names, text)
        yield from judged_directions(case, values, names, "the median matrix")
    recorded = size_in(text)
    if recorded is not None and "copy of the base" not in text:
        yield from _headline_size(case, *recorded)
    yield from _headline_place(case, text)


def _headline_size(case: Case, low: float, high: float, half: float) -> Judged:
    stored = case.truth.stored_norm()
    unrounded = case.summary.figures.relative_norm_overall_unrounded
    if low == high and (1 - STORED) * low - half <= stored <= (1 + STORED) * high + half:
        yield True, ""
    elif unrounded is None or case.made.update is None:
        yield False, f"as stored the change is {100 * stored:.3g} %"
    else:
        truths = case.truth.norm()
        before = written(100 * one for one in truths)
        recorded = f"the change is {100 * stored:.3g} % as stored, {before} % before"
        yield held([low - half, high + half], truths, BEFORE), recorded


def names_of_place(place: tuple[str, str, int | None]) -> set[str]:
    """What a headline may call the part that a matrix lies in."""
    return {WORDS.get(place[1], place[1]), PARTS[place[0]]}


def _headline_place(case: Case, text: str) -> Judged:
    """Of equals none is named alone; those that are named hold what is said."""
    if found := re.search(r"(most|all) of it in ([\w., ]+?)(?:\.$|;)", text):
        names = re.split(r", (?:and )?| and ", found[2])
        chosen = [one for one in case.truth.changed if names_of_place(place_of(one)) & {*names}]
        share = case.truth.energy_share(chosen)
        yield share >= (0.5 - FIGURE if found[1] == "most" else 1 - 1e-9), f"they hold {share:.1%}"
    found = re.search(r"most of it in (?:the )?([\w.]+?)(?:\.$|;)", text)
    if found is None:
        return
    shares = sorted(
        (case.truth.energy_share(names_at(case, ["modules", *one, ""])), one[1])
        for one in {place_of(name)[:2] for name in case.truth.changed}
    )
    if len(shares) > 1:
        (second, other), (first, name) = shares[-2:]
        recorded = f"{name} has {100 * first:.1f} %, {other} {100 * second:.1f} %"
        yield second < 0.9 * first, recorded
