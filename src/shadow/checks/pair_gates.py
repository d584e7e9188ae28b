"""The gates: what must hold before figures can be those of a training.

A pair that fails one has figures all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from shadow.checks.old import Claim, table
from shadow.checks.recognised import is_rearranged
from shadow.summary.record import PairRecord
from shadow.summary.standing import FULL_RANK, LINEAGE, ROUNDING, Standing
from shadow.text import counted, several

PAIRED = 0.9
# what each figure must reach
THRESHOLDS = {
    "changed": 1,
    "lineage": LINEAGE,
    "paired": PAIRED,
    "rounding": ROUNDING,
    "rank": FULL_RANK,
    "formats": 0.0,
}
GATES = table(
    Claim(
        "changed",
        "a matrix changed",
        "at least one matrix changed; biases and norms do not count",
    ),
    Claim(
        "lineage",
        "the tuned model comes from the base",
        "base and tuned matrices are similar (their median cosine outside embeddings and heads is"
        f" at least {LINEAGE:g}), and none is merely moved, rotated or reordered",
    ),
    Claim(
        "paired",
        "the two are states of one model",
        f"at least {100 * PAIRED:.0f} % of the larger side's parameters were compared. What an"
        " adapter leaves unchanged counts as compared; what a filter leaves out does not",
    ),
    Claim(
        "rounding",
        "the change is more than rounding",
        f"the median `floor_ratio` is at least {ROUNDING:g}, or storage rounded nothing. It fails"
        " if the rounding of most matrices is not known: of IQ types, and of a small change that is"
        " stored in more bits than its base",
    ),
    Claim(
        "rank",
        "the change has full rank",
        f"the median delta has at least {100 * FULL_RANK:.0f} % of the directions that its shape"
        " allows. The rank of an adapter counts, and so does `numerical_rank`; directions that hold"
        " no more than rounding do not. A low-rank change that rounding mostly hides may pass",
    ),
    Claim("formats", "every format is read", "no tensor is in a packed or an unknown format"),
)


@dataclass(frozen=True)
class Gate:
    """A gate and its answer, as summary.json has it."""

    name: str
    figure: float | None
    """What it is judged by; None where that is unknown."""
    threshold: float
    passed: bool
    reason: str


def failed(listed: Sequence[Gate]) -> list[Gate]:
    """The gates that were not passed, in their order."""
    return [gate for gate in listed if not gate.passed]


def gates(record: PairRecord, standing: Standing) -> list[Gate]:
    """Every gate of a pair, in the order of GATES."""
    found = []
    for name, judge in JUDGES.items():
        figure, passed, reason = judge(record, standing)
        found.append(Gate(name, figure, THRESHOLDS[name], passed, reason))
    return found


# the figure of a gate, whether it passes, and why
Judged = tuple[float | None, bool, str]


def _changed(record: PairRecord, standing: Standing) -> Judged:
    """How many matrices changed: every other gate, and every figure of a rule, is of matrices."""
    count, vectors = record.figures.matrices, record.vectors
    if count:
        return count, True, f"{counted(count, 'matrix', 'matrices')} changed"
    if not standing.identical:
        return None, False, "no matrix was compared"
    if vectors.changed:
        of = f"{vectors.changed:,} of {vectors.compared:,} biases and norms"
        only = "the only bias or norm" if vectors.compared == 1 else of
        return count, False, f"no matrix changed, but {only} did"
    what = "matrices, biases and norms" if vectors.compared else "matrices"
    return count, False, f"nothing changed: all {what} that were compared are identical"


def _lineage(record: PairRecord, standing: Standing) -> Judged:
    cosine, moved = standing.cosine, is_rearranged(record)
    if cosine is None:
        return None, False, "no matrix outside embeddings and heads was compared"
    passed = cosine >= LINEAGE and not moved
    median = f"median cosine {cosine:.2f}"
    if record.figures.rank_ceiling is not None:
        reason = "an adapter fits any base of its shape: nothing shows that it is of this one"
    elif moved:
        reason = f"layers have moved, or matrices are rotated or reordered ({median})"
    elif passed:
        reason = f"base and tuned weights are similar ({median})"
    else:
        reason = (
            f"base and tuned weights have little in common ({median}): they do not look like a base"
            " and a model tuned from it"
        )
    return cosine, passed, reason


def _paired(_: PairRecord, standing: Standing) -> Judged:
    passed = standing.compared >= PAIRED
    reason = f"{standing.compared_percent:.1f} % of the larger side's parameters were compared"
    if not passed:
        filtered = ": a filter left out the rest"
        reason += filtered if standing.is_part else ": these are not two states of one model"
    return standing.compared, passed, reason


def _rounding(record: PairRecord, standing: Standing) -> Judged:
    figure = record.figures.floor_ratio
    if figure is None and record.tier == "norms" and record.figures.rank_ceiling is None:
        return None, False, "norms alone were measured, and not what rounding left"
    if standing.unjudged:
        formats = several(standing.unjudged, 3)
        return None, False, f"it is not known what rounding to {formats} makes of a change"
    if figure is None:
        return None, True, "storage did not round the change"
    passed = figure >= ROUNDING
    times = f"{figure:.2g}" if figure < 100 else f"{figure:,.0f}"
    times = times if passed else f"only {times}"
    return figure, passed, f"the change is {times} times as large as rounding alone would make it"


def _rank(record: PairRecord, standing: Standing) -> Judged:
    """The share of its directions that a delta has at all, which an adapter of low rank bounds."""
    share = standing.rank_share
    if share is None and record.tier == "norms":
        return None, False, "norms alone were measured, and no rank"
    if share is None and record.estimated:
        return None, False, "singular values were estimated, and no rank is known"
    if share is None:
        return None, True, "the rank of no delta is known"
    if share >= FULL_RANK:
        of = f"{100 * share:.0f} % of the directions that its shape allows, rounding included"
        return share, True, f"the median delta has {of}"
    what = f"the median delta has rank {standing.rank:.0f} at most, like a merged adapter"
    if standing.rank_ceiling:
        what = f"the adapter limits every delta to rank {standing.rank_ceiling:.0f}"
    reason = (
        f"{what}. Its concentration therefore says little about the training; norms and locations"
        " are still valid"
    )
    return share, False, reason


def _formats(_: PairRecord, standing: Standing) -> Judged:
    share = standing.unread
    reason = "base and tuned are stored in the same formats"
    if share:
        reason = f"{100 * share:.1f} % of the parameters are in a format that shadow does not read"
    elif standing.formats:
        formats = ", ".join(standing.formats)[:60]
        reason = f"base and tuned are stored in different formats ({formats}), which rounds"
    return share, not share, reason


JUDGES: Mapping[str, Callable[[PairRecord, Standing], Judged]] = {
    "changed": _changed,
    "lineage": _lineage,
    "paired": _paired,
    "rounding": _rounding,
    "rank": _rank,
    "formats": _formats,
}
