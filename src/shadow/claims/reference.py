"""The shipped reference: trainings whose data are known, and where a pair lies among them.

`registry/reference/runs.csv` has the trainings of `shadow lab run --preset full`, and
`calibration.json` the bounds fitted from them and how often they err. An absolute threshold cannot
be defended: the same data leave concentrations from near 0 (Muon) to above 0.6 (LoRA), and larger
matrices have larger ones. So a pair is held only against trainings of matrices of about its size,
with its optimiser where that is known and with every one of the reference where not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

from shadow.files import registry_folder
from shadow.summary.rows import read_as

# The independent axes of a label: +1 where more of it points to narrow data. The first one, of the
# spectrum, decides; each of the others may object. More spectral figures would be no more votes:
# stable rank, top-4 energy, PR over its null and spike energy have rank correlations of 0.84 and
# more with concentration over the trainings of the lab.
AXES: Mapping[str, int] = {
    "concentration": 1,
    "embedding_row_participation_ratio": -1,
    "attention_to_mlp": 1,
}
AXIS_NAMES: Mapping[str, str] = {
    "concentration": "concentration",
    "embedding_row_participation_ratio": "token coverage",
    "attention_to_mlp": "attention to MLP",
}
# of log2 of the median short side: how far matrices of the reference may be from a pair's
NEAR = 0.5
COMPARE = "`shadow compare` compares two models tuned from one base"
OPTIMIZERS = ("adamw", "sgd", "muon")  # of full rank, that the reference has

Word = Literal["concentrated", "distributed", "mixed", "not assessable"]


@dataclass(frozen=True)
class Bound:
    """The bounds of a figure. Where the two kinds do not overlap, both are halfway between them."""

    concentrated: float
    """More concentrated than this it is so beyond every broad training of the reference."""
    distributed: float
    """Less concentrated than this it is so beyond every narrow one."""


@dataclass(frozen=True)
class Trainings:
    """The trainings of one size and optimiser."""

    short_side: int
    """The median smaller dimension of their matrices, 1 or more."""
    optimizer: str | None
    """One of OPTIMIZERS; None for any of them."""
    narrow: int
    broad: int
    norms: tuple[float, float]
    """The least and the greatest relative norm of theirs, medians over matrices: nothing is said of
    a pair outside.
    """
    bounds: Mapping[str, Bound]


@dataclass(frozen=True)
class Rate:
    """How often the label or a verdict errs.

    Cases of one base are not independent, so bases are counted too.
    """

    what: str
    errors: int
    cases: int
    affected: int
    """Bases with any error, 0 or more."""
    bases: int
    low: float
    """The lower bound, at 95 %, of the share of bases with any error, 0 to 1."""
    high: float


@dataclass(frozen=True)
class Calibration:
    """What a label rests on."""

    version: int
    """Of calibration.json; raised when a bound changes its meaning."""
    made: Mapping[str, str | int]
    """Which lab run, versions and design it comes from, by name."""
    trainings: list[Trainings]
    rates: list[Rate]

    @property
    def short_sides(self) -> list[int]:
        """The sizes that it has trainings of, ascending."""
        return sorted({trainings.short_side for trainings in self.trainings})


def reach(shipped: Calibration) -> str:
    """The one sentence about which pairs can have a label."""
    sides, octaves = shipped.short_sides, 2**NEAR
    least, most = sides[0] / octaves, sides[-1] * octaves
    low = min(trainings.norms[0] for trainings in shipped.trainings)
    high = max(trainings.norms[1] for trainings in shipped.trainings)
    return (
        "Labels are for full-rank updates of text decoders whose matrices have a short side of"
        f" {least:.0f} to {most:.0f}, with relative norms of {low:.2g} to {high:.2g}. Nearly all"
        " released models are larger and get no label."
    )


def choose(
    trainings: Sequence[Trainings], short_side: float | None, optimizer: str | None
) -> Trainings | None:
    """The trainings that a pair is held against, by the median short side of its matrices and its
    optimiser.

    Those with its optimiser where there are enough of them for bounds, else those with any; the
    nearest in size. None where none is near.
    """
    near = [candidate for candidate in trainings if _octaves(short_side, candidate) <= NEAR]
    alike = [candidate for candidate in near if candidate.optimizer == optimizer]
    of_any = [candidate for candidate in near if candidate.optimizer is None]
    return min(alike or of_any, key=partial(_octaves, short_side), default=None)


@dataclass(frozen=True)
class ReferenceRun:
    """A training of the reference, as runs.csv has it. Figures are medians over matrices."""

    short_side: int
    """The smaller dimension of its matrices, the median, 1 or more."""
    optimizer: str
    treatment: str
    regime: str
    data: str
    """narrow, broad or other."""
    base: str
    seed: int
    relative_norm: float
    """The median over its matrices, 0 or more."""
    concentration: float
    """Below 0 flatter than the null, 0 as the null, 1 of rank one."""
    stable_rank: float
    top4_energy: float
    participation_share: float
    """The participation ratio over the null's, above 0."""
    spike_energy: float
    embedding_row_participation_ratio: float
    """How many equally changed tokens would have the same sum of squared shares, 1 or more."""
    attention_to_mlp: float
    """Energy of the update in attention over that in MLPs, 0 or more."""


@dataclass(frozen=True)
class NearTraining:
    """A training of the reference that is near a pair."""

    regime: str
    treatment: str
    base: str
    seed: int
    concentration: float


@dataclass(frozen=True)
class Position:
    """Where a pair lies among the trainings that it is held against."""

    short_side: int
    optimizer: str | None
    narrow: int
    broad: int
    narrow_below: float
    """The share of those on narrow data that are less concentrated, 0 to 1."""
    broad_below: float
    """The same of those on broad data."""
    nearest: list[NearTraining]


@lru_cache(maxsize=1)
def calibration() -> Calibration:
    """The shipped calibration."""
    return parse((registry_folder() / "reference" / "calibration.json").read_text(encoding="utf-8"))


def parse(text: str) -> Calibration:
    """A Calibration from its JSON."""
    return read_as(Calibration, json.loads(text))


@lru_cache(maxsize=1)
def runs() -> tuple[ReferenceRun, ...]:
    """The trainings of the reference, in the order of runs.csv."""
    from pyarrow.csv import read_csv  # half a second, and `explain` needs none of it

    rows = read_csv(registry_folder() / "reference" / "runs.csv").to_pylist()
    return tuple(ReferenceRun(**row) for row in rows)


def choose_runs(
    short_side: float | None, optimizer: str, table: Sequence[ReferenceRun]
) -> list[ReferenceRun]:
    """The trainings of a table like `runs()` with an optimiser, of matrices of about this size."""
    alike = (run for run in table if run.optimizer == optimizer)
    return [run for run in alike if _octaves(short_side, run) <= NEAR]


def _octaves(short_side: float | None, other: Trainings | ReferenceRun) -> float:
    """How far two sizes are apart; infinite where one is unknown."""
    if short_side is None:
        return math.inf
    return abs(math.log2(short_side / other.short_side))


def bases_of(short_side: int, optimizer: str | None, data: str | None = None) -> int:
    """How many bases the trainings of a size and optimiser (None: any of OPTIMIZERS) began with.

    data: narrow or broad; None for both.
    """
    near = runs_of(short_side, optimizer, runs())
    return len({run.base for run in near if data is None or run.data == data})


def runs_of(
    short_side: int, optimizer: str | None, table: Sequence[ReferenceRun]
) -> list[ReferenceRun]:
    """The narrow and broad trainings of a size and optimiser (None: any of OPTIMIZERS)."""
    optimizers = (optimizer,) if optimizer else OPTIMIZERS
    return [
        run
        for run in table
        if run.short_side == short_side
        and run.optimizer in optimizers
        and run.data in ("narrow", "broad")
    ]


def points(name: str, value: float, bound: Bound) -> int:
    """+1 beyond every broad training, -1 beyond every narrow one, else 0."""
    way = AXES[name]
    if way * value > way * bound.concentrated:
        return 1
    if way * value < way * bound.distributed:
        return -1
    return 0


def word(figures: Mapping[str, float | None], trainings: Trainings) -> tuple[Word, str]:
    """The label among these trainings, and why. The figures have a concentration."""
    value, norm = figures["concentration"], figures["relative_norm"]
    assert value is not None
    low, high = trainings.norms
    if norm is None or not low <= norm <= high:
        return "not assessable", _outside(norm, trainings)
    bound = trainings.bounds["concentration"]
    first = points("concentration", value, bound)
    if not first:
        bases = _resting(bases_of(trainings.short_side, trainings.optimizer))
        return (
            "mixed",
            f"concentration {value:.2f} is between {bound.distributed:.2f} and"
            f" {bound.concentrated:.2f}, where narrow and broad trainings of the reference overlap"
            f" ({_whose(trainings)}, {bases})",
        )
    label, beyond = _beyond(first, trainings, bound=bound)
    reason = f"concentration {value:.2f} is {beyond}"
    objecting = _objecting(first, figures, trainings)
    if not objecting:
        return label, reason
    data = "narrow" if first > 0 else "broad"
    are = "is" if len(objecting) == 1 else "are"
    where = f"outside the range of the {data} trainings of the reference"
    return "mixed", f"{' and '.join(objecting)} {are} {where}, although {reason}"


def _outside(norm: float | None, trainings: Trainings) -> str:
    """Why a relative norm that no training has gets no word."""
    low, high = trainings.norms
    size = "unknown" if norm is None else f"{norm:.2g}"
    return (
        f"every gate passed, but the reference has relative norms from {low:.2g} to {high:.2g}, and"
        f" this one is {size}. {COMPARE}"
    )


def _objecting(way: int, figures: Mapping[str, float | None], trainings: Trainings) -> list[str]:
    """The other axes that lie beyond their bound on the other side, with their figures."""
    found = []
    for name, bound in trainings.bounds.items():
        figure = figures.get(name)
        if name != "concentration" and figure is not None and points(name, figure, bound) == -way:
            found.append(f"{AXIS_NAMES[name]} of {figure:.2g}")
    return found


def _beyond(way: int, trainings: Trainings, bound: Bound) -> tuple[Word, str]:
    """The label beyond a bound, and beyond how many trainings. way: +1 more concentrated, or -1."""
    label: Word = "distributed"
    data, count, than, limit = "narrow", trainings.narrow, "lower", bound.distributed
    if way > 0:
        label = "concentrated"
        data, count, than, limit = "broad", trainings.broad, "higher", bound.concentrated
    bases = _resting(bases_of(trainings.short_side, trainings.optimizer, data))
    return label, (
        f"{than} than in all {count} {data} trainings of the reference ({_whose(trainings)}, bound"
        f" {limit:.2f}, {bases})"
    )


def _whose(trainings: Trainings) -> str:
    return f"{trainings.optimizer or 'any optimiser'}, short side {trainings.short_side}"


def _resting(bases: int) -> str:
    """What a bound that no training of so many exchangeable bases passes promises of a new one."""
    if bases < 2:
        return "one base, which says nothing about another"
    return f"{bases} bases, so about 1 new base in {bases + 1} exceeds it by chance"


def position(concentration: float, trainings: Trainings, table: Sequence[ReferenceRun]) -> Position:
    """Where a concentration lies among the trainings of a table like `runs()`."""
    near = runs_of(trainings.short_side, trainings.optimizer, table)

    def share_below(data: str, count: int) -> float:
        below = sum(run.concentration < concentration for run in near if run.data == data)
        return round(below / max(1, count), 4)

    nearest = sorted(near, key=lambda run: abs(run.concentration - concentration))[:3]
    return Position(
        short_side=trainings.short_side,
        optimizer=trainings.optimizer,
        narrow=trainings.narrow,
        broad=trainings.broad,
        narrow_below=share_below("narrow", trainings.narrow),
        broad_below=share_below("broad", trainings.broad),
        nearest=[
            NearTraining(run.regime, run.treatment, run.base, run.seed, run.concentration)
            for run in nearest
        ],
    )
