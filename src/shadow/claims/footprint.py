"""Rows and figures -> what may be said of a footprint: gates, evidence, one of five labels, and the
claims ladder.

The gates come first: a pair that fails one has figures, but they are not those of a training. Then
its own null: what looks like noise of the same profile is `indeterminate`. Then the trainings of
`shadow.claims.reference`, of about the same size and with the same optimiser where it is known;
where there are none, the label says so and stays without a word.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from shadow.claims.reference import (
    Calibration,
    Position,
    Trainings,
    calibration,
    choose,
    position,
    runs,
    word,
)
from shadow.summary.bootstrap import Interval
from shadow.summary.figures import PairFigures
from shadow.summary.layer_medians import held_rank
from shadow.summary.rows import Claims, VectorFigures
from shadow.text import counted

if TYPE_CHECKING:
    import pandas as pd

Label = Literal["concentrated", "distributed", "mixed", "indeterminate", "not assessable"]

# With norms that are equal, a cosine below 0.5 is a delta longer than the base itself: it tells of
# the base's spectrum, not of a change. Fine-tunes have 0.9 and more, unrelated models of one shape
# 0 within 1 / sqrt(rows cols).
LINEAGE = 0.5
PAIRED = 0.9
ROUNDING = 2.0  # floor_ratio: a copy rounded once has 1
FULL_RANK = 0.5  # of the directions of a matrix; an adapter of rank 16 in 896 has 0.02
# Of concentration: within this of 0, a change is like noise. It is more than two trainings of the
# lab that differ in their seed alone are apart ("The margin" in docs/compare.md). What `compare`
# counts is another margin, of comparison.py.
MARGIN = 0.03
SPIKED = 0.05  # the share of matrices with a spike up to which there are none to speak of
OUTSIDE = ("embed", "head", "position")  # modules that unrelated models may share


VECTORS_ALONE = "no matrix changed"  # what the reason begins with if vectors did

GATES = {  # what must hold, by name
    "changed": "some matrix changed; biases and norms do not count",
    "lineage": (
        "the median cosine of base and tuned matrices outside embeddings and heads is at least"
        f" {LINEAGE:g}"
    ),
    "paired": (
        f"at least {100 * PAIRED:.0f} % of the larger side's parameters were compared; what an"
        " adapter leaves alone counts, what a filter leaves out does not"
    ),
    "rounding": f"the median `floor_ratio` is at least {ROUNDING:g}, or nothing was rounded",
    "rank": (
        f"the median delta has {100 * FULL_RANK:.0f} % of its directions or more, by an adapter's"
        " rank, by `numerical_rank`, and by how many hold all but rounding where these are few;"
        " what rounding took too much of may pass"
    ),
    "formats": "no tensor is packed or of an unknown format",
}


@dataclass(frozen=True)
class Gate:
    """A condition for calling the figures a footprint."""

    name: str
    """One of GATES."""

    figure: float | None
    """What it is judged by; None where that is unknown."""

    threshold: float
    """What it must reach."""

    passed: bool
    """Does it?"""

    reason: str
    """A sentence for people."""


@dataclass(frozen=True)
class Evidence:
    """One figure that a label would rest on, beside the value it has without any training."""

    name: str
    """The figure's name in the summary."""

    figure: float
    """Its value."""

    interval: tuple[float, float] | None
    """(low, high) over layers; None where it has none."""

    without: float | None
    """What it would be for noise of the same profile; None where that has no one value."""

    says: str
    """What it says, for people."""


@dataclass(frozen=True)
class Footprint:
    """What may be said of a pair."""

    label: Label
    """One of five words."""

    reason: str
    """Why the label is this one, a sentence for people."""

    evidence: tuple[Evidence, ...]
    """The figures that the label rests on; empty where no concentration is known."""

    claims: Claims
    """What was measured, what it is consistent with, and what it does not show."""

    position: Position | None
    """Where it lies among the trainings of the reference; None where these have no matrices of
    about its size, or no concentration is known.
    """


def gates(deltas: pd.DataFrame, tensors: pd.DataFrame, vectors: VectorFigures) -> list[Gate]:
    """Every gate of a pair, from the delta rows of matrices.parquet, all of tensors.parquet and
    what its vectors did.
    """
    weights = _weights(tensors)
    return [
        _changed(deltas, weights, vectors),
        _lineage(deltas, weights),
        _paired(weights),
        _rounding(deltas),
        _rank(deltas),
        _formats(deltas, weights),
    ]


def failed(listed: Sequence[Gate]) -> list[Gate]:
    """The gates that were not passed, in their order."""
    return [gate for gate in listed if not gate.passed]


def label_or_gates(label: str, gates: Sequence[Gate], *, applies: bool) -> str | None:
    """The gates that a pair failed, else its label where that applies; None where it does not.

    `not assessable` alone reads as a failure, and most released models are only out of the label's
    reach.
    """
    if stopped := [gate.name for gate in failed(gates)]:
        return f"{'gate' if len(stopped) == 1 else 'gates'} failed: {', '.join(stopped)}"
    return label if applies else None


def _weights(tensors: pd.DataFrame) -> pd.DataFrame:
    """The tensors of the side with more parameters that count as its weights, with their compared
    parameters.

    Left out are a tied head, which is its embedding, integers, and what a checkpoint holds beside
    the component that it is the base of. Columns are those of tensors.parquet that gates read, and
    size and compared.
    """
    sized = tensors[
        ["side", "module", "shape", "status", "reason", "detail", "relative_norm", "compared"]
    ].assign(size=[math.prod(int(n) for n in shape) for shape in tensors["shape"]])
    # a filter of the user's has no detail
    elsewhere = (sized["reason"] == "filtered") & sized["detail"].notna()
    sized = sized[~(sized["reason"].isin(["tied", "not_float"]) | elsewhere)]
    totals = sized.groupby("side")["size"].sum()
    side = "tuned" if totals.get("tuned", 0) >= totals.get("base", 0) else "base"
    rows = sized[sized["side"] == side]
    # a report made before `compared` was added says it by the status of whole tensors alone
    measured = (rows["status"] == "measured") & (rows["reason"] != "only_in_tuned")
    vectors = (rows["reason"] == "not_a_matrix") & rows["relative_norm"].notna()
    paired = (rows["status"] == "identical") | measured | vectors
    return rows.assign(compared=rows["compared"].fillna(rows["size"].where(paired, 0)))


def _changed(deltas: pd.DataFrame, weights: pd.DataFrame, vectors: VectorFigures) -> Gate:
    """How many matrices changed; None where none was compared, which says nothing of a change.

    Vectors do not count: every other gate, and every figure that a rule can name, is of matrices.
    """
    count = len(deltas)
    if not count and not _identical(weights):
        return Gate(
            name="changed", figure=None, threshold=1, passed=False, reason="no matrix was compared"
        )
    reason = "nothing changed: every matrix that was compared is identical"
    if vectors.changed:
        reason = (
            f"no matrix changed: {_moved(vectors)} moved, and every matrix that was compared is"
            " identical"
        )
    if count:
        reason = f"{counted(count, 'matrix', 'matrices')} changed"
    return Gate(name="changed", figure=count, threshold=1, passed=count > 0, reason=reason)


def _moved(vectors: VectorFigures) -> str:
    """`3 of 128 vectors (biases and norms)`."""
    if vectors.changed == vectors.compared == 1:
        return "the only vector (a bias or norm)"
    noun = "vector" if vectors.compared == 1 else "vectors"
    return f"{vectors.changed:,} of {vectors.compared:,} {noun} (biases and norms)"


def _identical(weights: pd.DataFrame, apart: Sequence[str] = ()) -> int:
    """How many matrices are identical on both sides, but for modules that are left apart."""
    same = weights[
        (weights["status"] == "identical") & ~weights["module"].isin((*apart, "norm", "bias"))
    ]
    matrices = 0
    for shape in same["shape"]:
        if len(shape) == 3:  # a stack of matrices
            matrices += int(shape[0])
        elif len(shape) > 1:
            matrices += 1
    return matrices


def _lineage(deltas: pd.DataFrame, weights: pd.DataFrame) -> Gate:
    """The median cosine over matrices outside embeddings and heads, which unrelated models may
    share.

    Identical ones count, with cosine 1.
    """
    inside = deltas.loc[~deltas["module"].isin(OUTSIDE), "cosine"].dropna()
    identical = _identical(weights, OUTSIDE)
    if not len(inside) + identical:
        return Gate(
            name="lineage",
            figure=None,
            threshold=LINEAGE,
            passed=False,
            reason="no matrix outside embeddings and heads was compared",
        )
    import pandas as pd

    figure = float(pd.concat([inside, pd.Series(1.0, index=range(identical))]).median())
    passed = figure >= LINEAGE
    if deltas["rank_ceiling"].notna().any():
        reason = (
            "an adapter fits any base of its shape, so it is unknown whether it was made for"
            " this one"
        )
    elif passed:
        reason = f"the tuned weights point where the base's do (median cosine {figure:.3f})"
    else:
        reason = (
            f"the tuned weights have little in common with the base's (median cosine {figure:.3f}):"
            " not its descendant"
        )
    return Gate(name="lineage", figure=figure, threshold=LINEAGE, passed=passed, reason=reason)


def _paired(weights: pd.DataFrame) -> Gate:
    total, compared = int(weights["size"].sum()), int(weights["compared"].sum())
    share = percent = 0.0
    if total:
        share = compared / total
        percent = 1000 * compared // total / 10  # rounded down: 100.0 is all of them
    reason = f"{percent:.1f} % of the larger side's parameters were compared"
    if share < PAIRED:
        if (weights["reason"] == "filtered").any():
            reason += ": a part was asked for"
        else:
            reason += ": these are not two states of one model"
    return Gate(
        name="paired", figure=share, threshold=PAIRED, passed=share >= PAIRED, reason=reason
    )


def _rounding(deltas: pd.DataFrame) -> Gate:
    ratios = deltas["floor_ratio"].dropna()
    if ratios.empty:
        return Gate(
            name="rounding",
            figure=None,
            threshold=ROUNDING,
            passed=True,
            reason="storage did not round the change",
        )
    figure = float(ratios.median())
    times = f"{figure:.2g}" if figure < 100 else f"{figure:,.0f}"
    reason = f"the change is {times} times the rounding of its storage"
    if figure < ROUNDING:
        reason += ": it is mostly rounding"
    return Gate(
        name="rounding", figure=figure, threshold=ROUNDING, passed=figure >= ROUNDING, reason=reason
    )


def _rank(deltas: pd.DataFrame) -> Gate:
    """The share of its directions that a delta has at all: what an adapter of low rank bounds."""
    inside = ~deltas["module"].isin(OUTSIDE)

    def column(name: str) -> pd.Series:
        return deltas.loc[inside, name]

    import pandas as pd

    ranks = pd.Series(held_rank(column), index=deltas.index[inside])
    shares = (ranks / pd.concat([column("rows"), column("cols")], axis=1).min(axis=1)).dropna()
    if shares.empty:
        return Gate(
            name="rank", figure=None, threshold=FULL_RANK, passed=True, reason="no rank ceiling"
        )
    figure, ceiling = float(shares.median()), column("rank_ceiling").max()
    if figure >= FULL_RANK:
        reason = (
            f"the median delta has {100 * figure:.0f} % of its directions, those of rounding"
            " included"
        )
    else:
        what = f"the median delta has rank {ranks.median():.0f} at most, as a merged adapter has"
        if ceiling > 0:
            what = f"an adapter's rank {ceiling:.0f} bounds the spectrum of every delta by design"
        reason = (
            f"{what}: how concentrated it is says little of the training; norms and places hold"
        )
    return Gate(
        name="rank", figure=figure, threshold=FULL_RANK, passed=figure >= FULL_RANK, reason=reason
    )


def _formats(deltas: pd.DataFrame, weights: pd.DataFrame) -> Gate:
    """The share of the parameters whose stored format cannot be read as numbers."""
    closed = weights[weights["reason"].isin(["unknown_dtype", "quantized"])]
    share = float(closed["size"].sum()) / max(1, int(weights["size"].sum()))
    differing = sorted({str(dtype) for dtype in deltas["dtype"].dropna() if "/" in str(dtype)})
    if share:
        reason = f"{100 * share:.1f} % of the parameters are stored in a format that is not read"
    elif differing:
        reason = (
            f"the sides are stored in different formats ({', '.join(differing)[:60]}): the change"
            " contains a rounding"
        )
    else:
        reason = "both sides are stored in one known format"
    return Gate(name="formats", figure=share, threshold=0.0, passed=not share, reason=reason)


def footprint(
    held: Sequence[Gate],
    figures: PairFigures,
    intervals: Mapping[str, Interval],
    components: Collection[str],
    optimizer: str | None = None,
    *,
    vectors_moved: bool = False,
) -> Footprint:
    """The label and what it rests on.

    held: every gate. figures, intervals: those of the summary. components: those with a delta.
    optimizer: what a user said. vectors_moved: did biases or norms change?
    """
    concentration = figures.concentration
    shipped = calibration()
    trainings, unlike = None, "the reference has trainings of text decoders alone"
    if set(components) <= {"language"}:
        trainings = choose(shipped.trainings, figures.short_side, optimizer)
        unlike = _unlike(shipped)
    evidence: tuple[Evidence, ...] = ()
    lies = None
    if concentration is not None:
        evidence = tuple(_evidence(figures, intervals))
        if trainings is not None:
            lies = position(concentration, trainings, runs())
    given, reason = label(
        stopped=[gate.reason for gate in failed(held)],
        figures=figures,
        trainings=trainings,
        unlike=unlike,
    )
    compared = next(gate for gate in held if gate.name == "changed").figure is not None
    claims = Claims(
        measured=_measured(bool(figures.matrices), compared),
        consistent_with=_consistent_with(held, given, figures, vectors_moved=vectors_moved),
        not_shown=[
            (
                "what data the model was trained on: optimiser, adapters, learning rate and novelty"
                " of the data move these figures as much as narrowness does"
            ),
            "what the model can or cannot do",
        ],
    )
    return Footprint(label=given, reason=reason, evidence=evidence, claims=claims, position=lies)


def label(
    stopped: Sequence[str],
    figures: Mapping[str, float | None],
    trainings: Trainings | None,
    unlike: str,
) -> tuple[Label, str]:
    """The label of figures and its reason. stopped: the reasons of the gates that failed; unlike:
    why no trainings.
    """
    if stopped:
        return "not assessable", "; ".join(stopped)
    concentration, spiked = figures["concentration"], figures["spiked"]
    if concentration is None or spiked is None:
        return "not assessable", "no matrix is large enough to compare with its null"
    if abs(concentration) <= MARGIN and spiked <= SPIKED:
        return (
            "indeterminate",
            "the change looks like noise of the same profile: nothing tells it from rounding",
        )
    if trainings is None:
        return (
            "not assessable",
            f"every gate passed, but {unlike}; two models tuned from one base can be compared",
        )
    return word(figures, trainings)


def _measured(changed: bool, compared: bool) -> list[str]:
    """What was measured: of matrices that changed, or of some that were compared and did not."""
    if changed:
        return [
            (
                "spectra of base, tuned and delta of every matrix, and how they differ from a"
                " sign-flip null"
            ),
            "where the update lies, over layers and modules",
        ]
    if not compared:
        return []
    return ["that no matrix of those compared has changed"]


def _unlike(shipped: Calibration) -> str:
    """Why there are no trainings to hold a pair against."""
    sides = " and ".join(str(side) for side in shipped.short_sides)
    return (
        f"the reference of known trainings has matrices of {sides} on the short side, and these are"
        " of another size"
    )


def _evidence(figures: PairFigures, intervals: Mapping[str, Interval]) -> list[Evidence]:
    """Figures that a label would rest on: concentration, a second energy metric, spikes, depth,
    token coverage.
    """

    def says_concentration(value: float) -> str:
        if value > MARGIN:
            return "fewer directions than noise of the same profile has"
        if value < -MARGIN:
            return "flatter than noise"
        return "as many directions as noise of the same profile has"

    rows = (
        ("concentration", 0.0, says_concentration),
        (
            "participation_share",
            1.0,
            lambda x: f"its participation ratio is {100 * x:.0f} % of that of its null",
        ),
        ("spike_energy", 0.0, lambda x: f"{100 * x:.0f} % of the energy stands out of the null"),
        (
            "spiked",
            0.0,
            lambda x: f"{100 * x:.0f} % of the matrices have a direction that stands out",
        ),
        (
            "effective_layers",
            None,
            lambda x: f"the energy fills {x:.1f} of {figures.depth_layers} layers",
        ),
        (
            "embedding_rows_changed",
            None,
            lambda x: f"{100 * x:.0f} % of the tokens' embeddings changed",
        ),
    )
    evidence = []
    for name, without, says in rows:
        figure, interval = figures.get(name), intervals.get(name)
        if figure is not None:
            bounds = interval.bounds if interval is not None else None
            evidence.append(
                Evidence(
                    name=name,
                    figure=float(figure),
                    interval=bounds,
                    without=without,
                    says=says(figure),
                )
            )
    return evidence


CONSISTENT = {  # with a failed gate, by its name
    "changed": "a copy of the base",
    "lineage": "two models that were trained apart",
    "paired": "models that share a part, or an audit of a part",
    "rounding": "a copy of the base in another format, or a change too small for its storage",
    "rank": "a low-rank adapter, merged or not",
}


def _consistent_with(
    held: Sequence[Gate],
    given: Label,
    figures: PairFigures,
    *,
    vectors_moved: bool,
) -> list[str]:
    if stopped := failed(held):
        if stopped[0].name == "changed" and stopped[0].figure is None:
            return []  # nothing was compared
        if stopped[0].name == "changed" and vectors_moved:
            return ["a training of biases and norms alone (BitFit)"]
        return [CONSISTENT[gate.name] for gate in stopped if gate.name in CONSISTENT][:1]
    concentration = figures.concentration
    if concentration is None:
        return []
    if given == "indeterminate":
        return [
            "rounding or requantisation of the base, or noise added to it",
            "an optimiser that makes its updates orthogonal (Muon)",
        ]
    if concentration > MARGIN:
        return [
            (
                "training that moved the weights along few directions: narrow or novel data, a"
                " small learning rate, or a merged adapter"
            ),
        ]
    if concentration < -MARGIN:
        return ["an optimiser that makes its updates orthogonal (Muon)"]
    return ["a few strong directions in a change that is otherwise like noise"]
