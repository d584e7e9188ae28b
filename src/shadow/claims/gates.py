"""The gates: what must hold before figures can be those of a training.

A pair that fails one has figures all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shadow.claims.answer import Claim, table
from shadow.claims.recognised import is_rearranged
from shadow.summary.record import PairRecord
from shadow.summary.rows import VectorFigures
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
        needs=("figures.matrices",),
        null="0",
    ),
    Claim(
        "lineage",
        "the tuned model comes from the base",
        "base and tuned matrices are similar (their median cosine outside embeddings and heads is"
        f" at least {LINEAGE:g}), and none is merely moved, rotated or reordered",
        null="a cosine of 0, as between unrelated models of one shape",
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
        " if most matrices are of IQ types, whose rounding is not known",
        needs=("figures.floor_ratio",),
        null="a floor_ratio of 1, as of a copy that was rounded once",
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
    return [
        _changed(record, standing),
        _lineage(record, standing),
        _paired(standing),
        _rounding(record, standing),
        _rank(record, standing),
        _formats(standing),
    ]


def _gate(name: str, figure: float | None, passed: bool, reason: str) -> Gate:
    return Gate(name, figure, THRESHOLDS[name], passed, reason)


def _changed(record: PairRecord, standing: Standing) -> Gate:
    """How many matrices changed; untold where none was compared.

    Vectors do not count: every other gate, and every figure that a rule can name, is of matrices.
    """
    count = record.figures.matrices
    if not count and not standing.identical:
        return _gate("changed", None, passed=False, reason="no matrix was compared")
    if count:
        reason = f"{counted(count, 'matrix', 'matrices')} changed"
    elif record.vectors.changed:
        reason = f"no matrix changed, but {_changed_vectors(record.vectors)} did"
    elif record.vectors.compared:
        reason = "nothing changed: all matrices, biases and norms that were compared are identical"
    else:
        reason = "nothing changed: all matrices that were compared are identical"
    return _gate("changed", count, passed=count > 0, reason=reason)


def _changed_vectors(vectors: VectorFigures) -> str:
    """`3 of 128 biases and norms`."""
    if vectors.compared == 1:
        return "the only bias or norm"
    return f"{vectors.changed:,} of {vectors.compared:,} biases and norms"


def _lineage(record: PairRecord, standing: Standing) -> Gate:
    cosine = standing.cosine
    if cosine is None:
        reason = "no matrix outside embeddings and heads was compared"
        return _gate("lineage", None, passed=False, reason=reason)
    passed = cosine >= LINEAGE and not is_rearranged(record)
    if record.figures.rank_ceiling is not None:
        reason = (
            "an adapter fits any base of its shape, so nothing shows whether it was trained on this"
            " one"
        )
    elif is_rearranged(record):
        reason = (
            "layers have moved, or matrices are rotated or reordered: the difference is not an"
            f" update (median cosine {cosine:.2f})"
        )
    elif passed:
        reason = f"base and tuned weights are similar (median cosine {cosine:.2f})"
    else:
        reason = (
            f"base and tuned weights have little in common (median cosine {cosine:.2f}): they do"
            " not look like a base and a model tuned from it"
        )
    return _gate("lineage", cosine, passed=passed, reason=reason)


def _paired(standing: Standing) -> Gate:
    passed = standing.compared >= PAIRED
    reason = f"{standing.compared_percent:.1f} % of the larger side's parameters were compared"
    if not passed:
        filtered = ": a filter left out the rest"
        reason += filtered if standing.is_part else ": these are not two states of one model"
    return _gate("paired", standing.compared, passed=passed, reason=reason)


def _rounding(record: PairRecord, standing: Standing) -> Gate:
    figure = record.figures.floor_ratio
    if figure is None and record.tier == "norms" and record.figures.rank_ceiling is None:
        reason = "norms alone were measured, and not what rounding left"
        return _gate("rounding", None, passed=False, reason=reason)
    if standing.unjudged:
        formats = several(standing.unjudged, 3)
        reason = f"it is not known what rounding to {formats} makes of a change"
        return _gate("rounding", None, passed=False, reason=reason)
    if figure is None:
        return _gate("rounding", None, passed=True, reason="storage did not round the change")
    times = f"{figure:.2g}" if figure < 100 else f"{figure:,.0f}"
    only = "only " if figure < ROUNDING else ""
    reason = f"the change is {only}{times} times as large as rounding alone would make it"
    return _gate("rounding", figure, passed=figure >= ROUNDING, reason=reason)


def _rank(record: PairRecord, standing: Standing) -> Gate:
    """The share of its directions that a delta has at all: what an adapter of low rank bounds."""
    share = standing.rank_share
    if share is None and record.tier == "norms":
        reason = "norms alone were measured, and no rank"
        return _gate("rank", None, passed=False, reason=reason)
    if share is None and record.estimated:
        reason = "singular values were estimated, and no rank is known"
        return _gate("rank", None, passed=False, reason=reason)
    if share is None:
        return _gate("rank", None, passed=True, reason="the rank of no delta is known")
    if share >= FULL_RANK:
        reason = (
            f"the median delta has {100 * share:.0f} % of the directions that its shape allows,"
            " rounding included"
        )
    else:
        what = f"the median delta has rank {standing.rank:.0f} at most, like a merged adapter"
        if standing.rank_ceiling:
            ceiling = standing.rank_ceiling
            what = f"the adapter limits every delta to rank {ceiling:.0f}"
        reason = (
            f"{what}. Its concentration therefore says little about the training; norms and"
            " locations are still valid"
        )
    return _gate("rank", share, passed=share >= FULL_RANK, reason=reason)


def _formats(standing: Standing) -> Gate:
    share = standing.unread
    if share:
        reason = f"{100 * share:.1f} % of the parameters are in a format that shadow does not read"
    elif standing.formats:
        reason = (
            "base and tuned are stored in different formats"
            f" ({', '.join(standing.formats)[:60]}), so the change includes rounding"
        )
    else:
        reason = "base and tuned are stored in the same formats"
    return _gate("formats", share, passed=not share, reason=reason)
