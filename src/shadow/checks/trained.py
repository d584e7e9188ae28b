"""`trained BASE TUNED --moved PATTERN --frozen PATTERN`: whether training moved what it should."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shadow.checks.old import (
    Against,
    Answer,
    Claim,
    Figure,
    all_tensors,
    apart_in_words,
    are,
    largest_first,
    not_compared,
    some_tensors,
)
from shadow.quantities import share
from shadow.run.scanned import Apart, Scanned
from shadow.text import counted, several

TRAINED = Claim(
    "trained",
    "what training moved",
    "every tensor that should have moved did, by more than a cast to another format, and every"
    " tensor that should be frozen is equal to the base's in every entry",
)
FREE = 0.9  # of the entries of a binade: where so many moved, the grid did not hold them
SAMPLE = 100  # entries that a typical step is taken from, at least


@dataclass(frozen=True, slots=True)
class Cell:
    """The entries of a tensor whose base lies between two powers of two."""

    half_ulp: float
    """Half a unit in the last place of the tuned side's format there."""
    entries: int
    changed: int
    energy: float


@dataclass(frozen=True, slots=True)
class Moved:
    """A tensor that a pattern names, and what it should have done."""

    row: Scanned
    module: str
    """Such as `language.norm`."""
    should: str
    """`move` or `stay`."""
    cells: tuple[Cell, ...] = ()
    is_initial: bool = False
    """Whether it is a vector of 1 or of 0 that is equal to the base's: it may get no gradient, and
    no step that BF16 holds at 1.
    """

    @property
    def is_cast(self) -> bool:
        """Whether the tuned tensor is the base's rounded to a format, and no more."""
        return self.row.rounded is not None and self.row.rounded[0] == "tuned"

    @property
    def rounded_to(self) -> str:
        """The format to which a cast rounded the base's values; it may be stored in a wider one."""
        return self.row.rounded[1] if self.row.rounded else ""

    @property
    def has_moved(self) -> bool:
        """Whether any entry differs by more than a cast."""
        return self.row.changed > 0 and not self.is_cast


@dataclass(frozen=True)
class Training:
    """What a scan found of a base and a model that was trained from it."""

    tensors: Sequence[Moved]
    lone: Sequence[Apart]
    unread: Sequence[Apart]
    beside: int
    """Tensors that no pattern names;"""
    beside_moved: int
    """and how many of them differ from the base's."""


def trained(found: Training) -> tuple[Answer, tuple[Against, ...], tuple[str, ...]]:
    """The answer, what speaks against it, and notes."""
    named = [one for one in found.tensors if one.should == "move" and one.row.entries]
    should = [one for one in named if not one.is_initial]
    initial = [one.row.tuned for one in named if one.is_initial]
    frozen = [one for one in found.tensors if one.should == "stay"]
    stayed = [one for one in should if not one.has_moved]
    leaked = [one for one in frozen if one.row.changed]
    step = typical_step(found.tensors)
    figures = _figures(should, stayed, frozen, leaked)
    if step is not None:
        figures["typical_step"] = step
    against = [Against(one.tensor, one.what) for one in found.lone]
    against += [Against(one.row.tuned, _stayed(one, step)) for one in stayed]
    against += [Against(one.row.tuned, _leaked(one), one.row.relative) for one in leaked]
    notes = [*_stuck(named, step, figures), *_beside(found)]
    if initial:
        figures["tensors_initial"] = len(initial)
        some = counted(len(initial), "vector", "vectors")
        notes.append(
            f"{some} of 1 or of 0 did not move, and may be unable to: {several(initial, 3)}"
        )
    if stayed or leaked or found.lone:
        texts = []
        if stayed:
            texts.append(f"{some_tensors(stayed, should)} that should have moved did not")
        if leaked:
            differ = "differs" if len(leaked) == 1 else "differ"
            texts.append(f"{some_tensors(leaked, frozen)} that should be frozen {differ}")
        texts += apart_in_words(found.lone, "on one side only")
        answer = Answer("trained", "does_not_hold", "; ".join(texts), figures)
        return answer, largest_first(against), tuple(notes)
    if found.unread:
        reason = not_compared(found.unread)
        unread = largest_first([Against(one.tensor, one.what) for one in found.unread])
        return Answer("trained", "inconclusive", reason, figures), unread, tuple(notes)
    texts = []
    if should:
        texts.append(f"{all_tensors(len(should))} that should have moved did")
    if frozen:
        every = f"{all_tensors(len(frozen))} that should be frozen"
        texts.append(f"{every} {are(len(frozen))} equal in every entry")
    if not texts:
        reason = "no tensor that the patterns name was compared"
        return Answer("trained", "inconclusive", reason, figures), (), tuple(notes)
    return Answer("trained", "holds", "; ".join(texts), figures), (), tuple(notes)


def typical_step(tensors: Sequence[Moved]) -> float | None:
    """The root mean square of what entries moved by; None where the grid hides it."""
    cells = [
        cell
        for one in tensors
        if one.should == "move" and one.row.finite
        for cell in one.cells
        if cell.changed >= FREE * cell.entries
    ]
    entries = sum(cell.entries for cell in cells)
    if entries < SAMPLE:
        return None
    return math.sqrt(math.fsum(cell.energy for cell in cells) / entries) or None


def _figures(
    should: Sequence[Moved],
    stayed: Sequence[Moved],
    frozen: Sequence[Moved],
    leaked: Sequence[Moved],
) -> dict[str, Figure]:
    return {
        "tensors_to_move": len(should),
        "tensors_not_moved": len(stayed),
        "tensors_frozen": len(frozen),
        "tensors_frozen_moved": len(leaked),
        "entries_to_move": sum(one.row.entries for one in should),
        "entries_not_moved": sum(one.row.entries - one.row.changed for one in should),
    }


def _too_coarse(one: Moved, step: float) -> int:
    """Entries that did not move, where half a unit in the last place is above the typical step."""
    return sum(cell.entries - cell.changed for cell in one.cells if cell.half_ulp > step)


def _stuck(should: Sequence[Moved], step: float | None, figures: dict[str, Figure]) -> list[str]:
    """How many entries could not move, and in which module the largest share of them lies."""
    if step is None:
        return []
    stuck = {one.row.tuned + one.row.place: _too_coarse(one, step) for one in should}
    total = sum(stuck.values())
    figures["entries_stuck"] = total
    if not total:
        return []
    entries = sum(one.row.entries for one in should)
    formats = " and ".join(sorted({one.row.formats[1] for one in should if one.cells}))
    text = (
        f"{share(total / entries)} of the entries that should have moved did not, where half a unit"
        f" of {formats} is above the typical step of {step:.2g}"
    )
    modules: dict[str, list[int]] = {}
    for one in should:
        counts = modules.setdefault(one.module, [0, 0])
        counts[0] += stuck[one.row.tuned + one.row.place]
        counts[1] += one.row.entries
    worst = sorted(modules.items(), key=lambda item: (-item[1][0] / max(1, item[1][1]), item[0]))
    named = ", ".join(f"{name} {share(some / of)}" for name, (some, of) in worst[:3] if some)
    return [f"{text}; by module: {named}"]


def _beside(found: Training) -> list[str]:
    if not found.beside:
        return []
    tensors = counted(found.beside, "tensor", "tensors")
    moved = f"{found.beside_moved:,}" if found.beside_moved else "none"
    return [f"no pattern names {tensors}; {moved} of them moved"]


def _stayed(one: Moved, step: float | None) -> str:
    if one.row.changed:
        return f"it is the base's rounded to {one.rounded_to}"
    text = "it is equal to the base's in every entry"
    if step is not None and one.cells and _too_coarse(one, step) == one.row.entries:
        least = min(cell.half_ulp for cell in one.cells)
        text += f"; half a unit of {one.row.formats[1]} is {least:.2g} or more there,"
        text += f" the typical step is {step:.2g}"
    return text


def _leaked(one: Moved) -> str:
    text = f"{one.row.changed:,} of {one.row.entries:,} entries differ"
    return f"{text}: it is the base's rounded to {one.rounded_to}" if one.is_cast else text
