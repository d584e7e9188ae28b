"""The shipped reference: trainings whose data are known, and where a pair lies among them.

`registry/reference/runs.csv` has the trainings of `shadow lab run --preset full`, and `calibration.json` the bounds
fitted from them and how often they err. An absolute threshold cannot be defended: the same data leave concentrations
from near 0 (Muon) to above 0.6 (LoRA), and larger matrices have larger ones. So a pair is held only against trainings
of matrices of about its size, with its optimiser where that is known and with every one of the reference where not.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from shadow.files import registry_folder

# +1 where more of it is more concentrated; the first decides, of the others at least AGREEING must point its way
VOTES: Mapping[str, int] = {
    "concentration": 1,
    "stable_rank": -1,
    "top4_energy": 1,
    "participation_share": -1,
    "spike_energy": 1,
}
AGREEING = 2
NEAR = 0.5  # of log2 of the median short side: how far matrices of the reference may be from a pair's
OPTIMIZERS = ("adamw", "sgd", "muon")  # of full rank, that the reference has

Word = Literal["concentrated", "distributed", "mixed"]


@dataclass(frozen=True)
class Bound:
    """A figure more concentrated than `concentrated` is so beyond every broad training of the reference; one less so
    than `distributed` is beyond every narrow one. Where the two kinds do not overlap both are halfway between them."""

    concentrated: float
    distributed: float


@dataclass(frozen=True)
class Trainings:
    """The trainings of one size and optimiser (null: any of OPTIMIZERS): how many are narrow and broad, and bounds."""

    short_side: int
    optimizer: str | None
    narrow: int
    broad: int
    bounds: Mapping[str, Bound]  # by the names of VOTES


@dataclass(frozen=True)
class Rate:
    """How often the label or a verdict errs: errors of cases, and (low, high) at 95 % for the share of bases with any.

    bases counts the bases, affected those of them with an error: cases of one base are not independent.
    """

    what: str
    errors: int
    cases: int
    affected: int
    bases: int
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """What a label rests on. made says which lab run, versions and commit-independent design it comes from."""

    version: int
    made: Mapping[str, Any]
    trainings: tuple[Trainings, ...]
    rates: tuple[Rate, ...]

    @property
    def short_sides(self) -> list[int]:
        return sorted({one.short_side for one in self.trainings})


def choose(trainings: Sequence[Trainings], short_side: float | None, optimizer: str | None) -> Trainings | None:
    """The trainings that a pair is held against, by the median short side of its matrices and its optimiser.

    Those with its optimiser where there are enough of them for bounds, else those with any; the nearest in size. None
    where none is near.
    """
    if short_side is None:
        return None
    near = [one for one in trainings if abs(math.log2(short_side / one.short_side)) <= NEAR]
    own = [one for one in near if one.optimizer == optimizer] or [one for one in near if one.optimizer is None]
    return min(own, key=lambda one: abs(math.log2(short_side / one.short_side)), default=None)


@dataclass(frozen=True)
class NearTraining:
    """A training of the reference; concentration is the median over its matrices."""

    regime: str
    treatment: str
    base: str
    seed: int
    concentration: float


@dataclass(frozen=True)
class Position:
    """Where a pair lies: the shares of narrow and broad trainings that are less concentrated, and the nearest three."""

    short_side: int
    optimizer: str | None
    narrow: int
    broad: int
    narrow_below: float
    broad_below: float
    nearest: list[NearTraining]


@lru_cache(maxsize=1)
def calibration() -> Calibration:
    """The shipped calibration."""
    return parse((registry_folder() / "reference" / "calibration.json").read_text(encoding="utf-8"))


def parse(text: str) -> Calibration:
    """A Calibration from its JSON."""
    found = json.loads(text)
    trainings = tuple(
        Trainings(**{**one, "bounds": {name: Bound(**bound) for name, bound in one["bounds"].items()}})
        for one in found["trainings"]
    )
    return Calibration(found["version"], found["made"], trainings, tuple(Rate(**one) for one in found["rates"]))


@lru_cache(maxsize=1)
def runs() -> list[dict[str, Any]]:
    """The trainings of the reference, numbers as numbers."""
    with (registry_folder() / "reference" / "runs.csv").open(encoding="utf-8", newline="") as file:
        return [{key: _value(key, text) for key, text in row.items()} for row in csv.DictReader(file)]


def _value(key: str, text: str) -> str | float | int:
    if key in ("short_side", "seed"):
        return int(text)
    return float(text) if key in VOTES or key == "relative_norm" else text


def choose_runs(
    short_side: float | None, optimizer: str, table: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The trainings of a table like `runs()` with an optimiser, of matrices of about this size."""
    if short_side is None:
        return []
    return [
        row for row in table if row["optimizer"] == optimizer and abs(math.log2(short_side / row["short_side"])) <= NEAR
    ]


def bases_of(short_side: int, optimizer: str | None, data: str | None = None) -> int:
    """How many bases the trainings of a size and optimiser (None: any of OPTIMIZERS) began with.

    data: narrow or broad; None for both.
    """
    optimizers = (optimizer,) if optimizer else OPTIMIZERS
    kinds = (data,) if data else ("narrow", "broad")
    own = (row for row in runs() if row["short_side"] == short_side and row["optimizer"] in optimizers)
    return len({row["base"] for row in own if row["data"] in kinds})


def points(name: str, value: float, bound: Bound) -> int:
    """+1 beyond every broad training, -1 beyond every narrow one, else 0."""
    way = VOTES[name]
    return int(way * value > way * bound.concentrated) - int(way * value < way * bound.distributed)


def word(figures: Mapping[str, Any], trainings: Trainings) -> tuple[Word, str]:
    """The label that the figures of a summary get among these trainings, and why."""
    votes = {
        name: points(name, float(figures[name]), bound)
        for name, bound in trainings.bounds.items()
        if figures.get(name) is not None
    }
    own = votes.pop("concentration", 0)
    agree, oppose = (sum(vote == way * own for vote in votes.values()) for way in (1, -1))
    bound, value = trainings.bounds["concentration"], float(figures["concentration"])
    whose = f"with {trainings.optimizer}" if trainings.optimizer else "with any optimiser"
    against = f"trainings of the reference ({whose}, {trainings.short_side} wide)"
    if own and agree >= AGREEING and agree > oppose:
        kind, count, limit = (
            ("broad", trainings.broad, bound.concentrated)
            if own > 0
            else ("narrow", trainings.narrow, bound.distributed)
        )
        how = "more" if own > 0 else "less"
        bases = _resting(bases_of(trainings.short_side, trainings.optimizer, kind))
        reason = f"concentration {value:.3f} and {agree} of the other {len(votes)} figures are {how} concentrated than "
        reason += f"in all {count} {kind} {against} (bound {limit:.3f}, {bases})"
        return ("concentrated" if own > 0 else "distributed"), reason
    bases = _resting(bases_of(trainings.short_side, trainings.optimizer))
    if own:
        more = "more" if own > 0 else "less"
        return "mixed", (
            f"concentration {value:.3f} is {more} than the bound, but only {agree} of the other {len(votes)} figures "
            f"agree and {oppose} point the other way ({against}; {bases})"
        )
    return "mixed", (
        f"concentration {value:.3f} lies where narrow and broad {against} both lie "
        f"({bound.distributed:.3f} to {bound.concentrated:.3f}, {bases})"
    )


def _resting(bases: int) -> str:
    """What a bound that no training of so many exchangeable bases passes can promise of a new one."""
    if bases < 2:
        return "on one base, which promises nothing of another"
    return f"on {bases} bases, so that one new base in {bases + 1} passes it by chance"


def position(concentration: float, trainings: Trainings, table: Sequence[Mapping[str, Any]]) -> Position:
    """Where a concentration lies among the trainings of a table like `runs()`."""
    own = [
        row
        for row in table
        if row["short_side"] == trainings.short_side
        and row["data"] in ("narrow", "broad")
        and row["optimizer"] in ((trainings.optimizer,) if trainings.optimizer else OPTIMIZERS)
    ]
    below = {
        data: sum(row["concentration"] < concentration for row in own if row["data"] == data) / max(1, count)
        for data, count in (("narrow", trainings.narrow), ("broad", trainings.broad))
    }
    nearest = sorted(own, key=lambda row: abs(row["concentration"] - concentration))[:3]
    told = [
        NearTraining(
            regime=row["regime"],
            treatment=row["treatment"],
            base=row["base"],
            seed=row["seed"],
            concentration=row["concentration"],
        )
        for row in nearest
    ]
    return Position(
        trainings.short_side, trainings.optimizer, trainings.narrow, trainings.broad,
        round(below["narrow"], 4), round(below["broad"], 4), told,
    )  # fmt: skip
