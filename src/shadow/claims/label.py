"""The label of a pair, the figures that it rests on, and what may be said of the pair in general.

The gates come first: a pair that fails one has figures, but they are not those of a training. Then
its own null: what looks like noise of the same profile is `indeterminate`. Then the trainings of
`shadow.claims.reference`, of about the same size and with the same optimiser where it is known;
where there are none, the label says so and stays without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shadow.claims.gates import Gate, failed
from shadow.claims.reference import (
    COMPARE,
    Calibration,
    Position,
    Trainings,
    calibration,
    choose,
    position,
    runs,
    word,
)
from shadow.summary.figures import ALSO_MOVED_BY, PairFigures
from shadow.summary.record import PairRecord
from shadow.summary.tiers import WORDS

Label = Literal["concentrated", "distributed", "mixed", "indeterminate", "not assessable"]

# Of concentration: within this of 0, a change is like noise. It is more than two trainings of the
# lab that differ in their seed alone are apart ("The margin" in docs/compare.md). What `compare`
# counts is another margin, of comparison.py.
MARGIN = 0.03
SPIKED = 0.05  # the share of matrices with a spike up to which there are none to speak of
MUON = "an optimiser with orthogonal updates (Muon)"
NOT_SHOWN = (
    f"which data the model was trained on: {ALSO_MOVED_BY}",
    "what the model can or cannot do",
)
CONSISTENT = {  # with a failed gate, by its name
    "changed": "a copy of the base",
    "lineage": "two models that were trained independently",
    "paired": "two models that share a part, or an audit of a part",
    "rounding": "a copy of the base in another format, or a change too small for its format",
    "rank": "a low-rank adapter, merged or not",
}


@dataclass(frozen=True)
class Evidence:
    """One figure that a label would rest on, beside the value it has without any training."""

    name: str
    figure: float
    interval: tuple[float, float] | None
    """(low, high) over layers; None where it has none."""
    without: float | None
    """What it would be for noise of the same profile; None where that has no one value."""
    says: str


@dataclass(frozen=True)
class Claims:
    """What may be said of a pair and what may not."""

    measured: list[str]
    consistent_with: list[str]
    """What would explain it; never what did."""
    not_shown: list[str]


@dataclass(frozen=True)
class Footprint:
    """The keys of summary.json that the label fills."""

    label: Label
    label_reason: str
    evidence: list[Evidence]
    """Empty where no concentration is known."""
    reference: Position | None
    """None where the reference has no matrices of about its size, or no concentration is known."""
    claims: Claims


def footprint(record: PairRecord, gates: Sequence[Gate], optimizer: str | None = None) -> Footprint:
    """The label and what it rests on. optimizer: what a user said."""
    figures = record.figures
    concentration = figures.concentration
    shipped = calibration()
    trainings, unlike = None, "the reference only has trainings of text decoders"
    if {row.component for row in record.modules} <= {"language"}:
        trainings = choose(shipped.trainings, figures.short_side, optimizer)
        unlike = _unlike(shipped)
    lies = None
    if concentration is not None and trainings is not None:
        lies = position(concentration, trainings, runs())
    stopped = [gate.reason for gate in failed(gates)]
    given, reason = label(stopped, figures, trainings=trainings, unlike=unlike)
    return Footprint(
        label=given,
        label_reason=reason,
        evidence=[] if concentration is None else _evidence(record),
        reference=lies,
        claims=Claims(
            measured=_measured(record, gates),
            consistent_with=_consistent_with(record, gates, given),
            not_shown=list(NOT_SHOWN),
        ),
    )


def label(
    stopped: Sequence[str],
    figures: Mapping[str, float | None],
    trainings: Trainings | None,
    unlike: str,
) -> tuple[Label, str]:
    """The label and its reason. stopped: why gates failed; unlike: why there are no trainings."""
    if stopped:
        return "not assessable", "; ".join(stopped)
    concentration, spiked = figures["concentration"], figures["spiked"]
    if concentration is None or spiked is None:
        why = "random signs, too, would leave fewer than 2 directions in every matrix"
        return "not assessable", why
    if abs(concentration) <= MARGIN and spiked <= SPIKED:
        return (
            "indeterminate",
            "the change looks like noise of the same profile, as rounding does",
        )
    if trainings is None:
        return ("not assessable", f"every gate passed, but {unlike}. {COMPARE}")
    return word(figures, trainings)


def _unlike(shipped: Calibration) -> str:
    """Why there are no trainings to hold a pair against."""
    sides = " or ".join(str(side) for side in shipped.short_sides)
    return f"the reference only has trainings of matrices with a short side of about {sides}"


def _of_concentration(value: float, figures: PairFigures) -> str:
    if value > MARGIN:
        return "fewer directions than noise of the same profile"
    if value < -MARGIN:
        return "flatter than noise"
    return "as many directions as noise of the same profile"


# by name: the value of noise of the same profile, and what a value says
EVIDENCE: Mapping[str, tuple[float | None, Callable[[float, PairFigures], str]]] = {
    "concentration": (0.0, _of_concentration),
    "participation_share": (
        1.0,
        lambda x, _: f"the participation ratio is {100 * x:.0f} % of the null's",
    ),
    "spike_energy": (
        0.0,
        lambda x, _: f"{100 * x:.0f} % of the energy is above the edge of the null",
    ),
    "spiked": (
        0.0,
        lambda x, _: (
            f"{100 * x:.0f} % of the matrices have a singular value above the edge of the null"
        ),
    ),
    "effective_layers": (
        None,
        lambda x, of: f"the energy is spread over {x:.1f} of {of.depth_layers} layers",
    ),
    "embedding_rows_changed": (
        None,
        lambda x, _: f"{100 * x:.0f} % of the tokens' embeddings changed",
    ),
}


def _evidence(record: PairRecord) -> list[Evidence]:
    figures = record.figures
    return [
        Evidence(
            name=name,
            figure=float(figure),
            interval=record.intervals.get(name),
            without=without,
            says=says(figure, figures),
        )
        for name, (without, says) in EVIDENCE.items()
        if (figure := figures[name]) is not None
    ]


def _measured(record: PairRecord, gates: Sequence[Gate]) -> list[str]:
    """What was measured: of matrices that changed, or of some that were compared and did not."""
    if record.figures.matrices:
        how = "; estimated for large matrices" if record.estimated else ""
        return [WORDS[record.tier].measured + how, "where the update lies, by layer and module"]
    if any(gate.name == "changed" and gate.figure is None for gate in gates):
        return []
    return ["that no matrix changed, of those that were compared"]


def _consistent_with(record: PairRecord, gates: Sequence[Gate], given: Label) -> list[str]:
    if stopped := failed(gates):
        if stopped[0].name == "changed" and stopped[0].figure is None:
            return []  # nothing was compared
        if stopped[0].name == "changed" and record.vectors.changed:
            return ["training of biases and norms only (BitFit)"]
        told = [gate for gate in stopped if record.tier != "norms" or gate.figure is not None]
        return [CONSISTENT[gate.name] for gate in told if gate.name in CONSISTENT][:1]
    concentration = record.figures.concentration
    if concentration is None:
        return []
    if given == "indeterminate":
        return ["rounding or requantisation of the base, or noise added to it", MUON]
    if concentration > MARGIN:
        return [
            "training that moved the weights along few directions: narrow or novel data, a small"
            " learning rate, or a merged adapter"
        ]
    if concentration < -MARGIN:
        return [MUON]
    return ["a few strong directions in a change that is otherwise like noise"]
