"""The heads of the tables on the screen, and the column of each, so that they can be looked up."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Head:
    """A head of a table on the screen."""

    text: str
    """What stands below it."""

    column: str = ""
    """The column that has the same figure of one matrix or pair; empty where there is none."""


MEDIAN = "median over the matrices of the row"
MEDIAN_INSIDE = "median over the matrices inside layers"
PAIRED = "median of the differences between the two reports, matrix by matrix"
HEADS = {
    # one report
    "n": Head("number of matrices in the row that changed"),
    "changed": Head("number of matrices of the component that changed"),
    "identical": Head("number of tensors of the component that are identical in both checkpoints"),
    "rel. norm": Head(MEDIAN, "relative_norm"),
    "relative norm": Head("norm of the whole change relative to the base", "relative_norm_overall"),
    "energy": Head("share of the row in the energy of change of all that was measured",
    "energy_share"),
    "conc.": Head(MEDIAN, "concentration"),
    "PR": Head(MEDIAN, "participation_ratio"),
    "null PR": Head(MEDIAN, "null_participation_ratio"),
    "spike energy": Head(MEDIAN, "spike_energy"),
    "stable rank": Head(MEDIAN, "stable_rank"),
    "eff. rank": Head(MEDIAN, "effective_rank"),
    "shift": Head(MEDIAN, "effective_rank_shift"),
    "eff. rank shift": Head("median over the matrices of each layer", "effective_rank_shift"),
    "MLP up shift": Head("median over the up-projections of each layer", "effective_rank_shift"),
    "directions read": Head("one figure for each layer", "reading_participation_ratio"),
    "layers": Head("effective number of layers that hold the change", "effective_layers"),
    "spread": Head(
        "bounds of the figure beside it when layers are resampled. Of one report the figure is the"
        " median concentration, of two the difference. Other runs or seeds are not in it"
    ),
    # words of the finding
    "other": Head("a part or a matrix whose role is not known from its name", "module"),
    "as coherent as": Head("how many equally strong directions are as coherent; no count",
    "equivalent_directions"),
    "coherent": Head("how few equally strong directions would be as coherent as the change",
    "equivalent_directions"),
    "noise": Head("random signs, with the row and column sizes of the change", "purity_z"),
    "structure": Head("what tells a change from noise: purity_z is above 5", "purity_z"),
    "depth": Head("how evenly the change lies over the layers", "depth_entropy"),
    # two reports
    "figure": Head("what is compared: a median over the matrices that both reports have"),
    "report": Head(
        "letter and pair of a report; the letters stand for the folders that are named first"
    ),
    "difference": Head(
        "median of the paired differences: the first report less the second, or their ratio after"
        " `x`"
    ),
    "margin": Head("a difference within it, on either side of 0, counts as none"),
    "verdict": Head("what the difference, its spread over layers and the margin say together"),
    "p": Head(
        "p-value of a sign-flip test over layers, within this pair; not over other runs or seeds"
    ),
    "rank": Head("place of the report, the most concentrated first"),
    "against the next": Head("verdict of the comparison with the report one place below"),
    "st. rank": Head(PAIRED, "stable_rank"),
    "top-4": Head(PAIRED, "top4_energy"),
    "top-4 energy": Head(PAIRED, "top4_energy"),
    "median rel. norm": Head(
        "median over the matrices that both reports have; a table of pairs has that of the whole"
        " change, which is another figure",
        "relative_norm",
    ),
    "PR / null PR": Head(PAIRED, "participation_ratio_over_null_difference"),
    "PR/null": Head(PAIRED, "participation_ratio_over_null_difference"),
    "spike en.": Head(PAIRED, "spike_energy"),
    # stages in order
    "step": Head("a pair of stages, of which the second was trained from the first"),
    "size": Head(
        "relative norm of the whole update before it was rounded for storage; with `*` as stored",
        "relative_norm_overall_unrounded",
    ),
    "ratio": Head("norm of the delta divided by that of the step before"),
    "most in": Head("the group of modules that holds most of the energy of change, and its share"),
    "dirs.": Head(MEDIAN_INSIDE, "equivalent_directions"),
    "inside": Head(
        "share of the delta's energy in the leading directions of the delta of the step before,"
        " outputs / inputs"
    ),
    "unchanged": Head("share of the entries that are the same in both checkpoints", "zero_share"),
    # letters in formulas and limits of columns
    "X": Head("the letter for excess purity", "excess_purity"),
    "1/X": Head("one over the excess purity X", "equivalent_directions"),
    "x": Head("stands before a ratio of the first report to the second: `x 0.67`"),
    # a list of pairs
    "#": Head("place of the pair in the list", "position"),
    "norm": Head("norm of the whole change relative to the base", "relative_norm_overall"),
    "time": Head("seconds that the audit of the pair took", "seconds"),
    # scores
    "±": Head("standard error of the gain", "gain_stderr"),
}  # fmt: skip


def head_of(word: str) -> Head | None:
    """The head that a word is, in its own case or in any; None where it is none.

    The letters of compared reports and the level of a spread are left out: `conc. A`, `A - B`,
    `spread, 95 %`.
    """
    bare = re.sub(r", [\d.]+ %$| [A-Z]$", "", " ".join(word.split()))
    if bare in HEADS:
        return HEADS[bare]
    if re.fullmatch(r"[A-Z] -", bare):
        return HEADS["difference"]
    if re.fullmatch(r"[A-Z]", bare):
        return HEADS["report"]
    return next((head for name, head in HEADS.items() if name.lower() == bare.lower()), None)
