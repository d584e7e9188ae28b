"""`quantised ORIGINAL QUANTISED`: is it this model in that format, and which tensors are not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from shadow.claims.answer import Answer, Claim, Figure
from shadow.claims.verify.scanned import Apart, apart_in_words, not_compared, some_tensors
from shadow.claims.verify.verification import Against, largest_first
from shadow.quantities import share
from shadow.spectra.levels import FormatNoise
from shadow.text import counted, several

QUANTISED = Claim(
    "quantised",
    "a quantised copy",
    "every entry of the original is rounded to its copy, or lies beyond the last level of"
    " its block; with scales from an importance matrix, all but"
    " 1 % of the entries of Q4_0, Q4_1, Q5_0 and Q5_1",
)
SOME = 0.001  # the share of entries without a scale from which a note says so


class Stands(StrEnum):
    """How a tensor of the copy stands to that of the original."""

    COPY = "copy"
    BEYOND = "beyond"
    CALIBRATED = "calibrated"
    """More error than rounding makes, as quantisers of its format may make on purpose."""
    ROUND_TRIP = "round trip"
    """Floats that may have been in few bits before."""
    UNKNOWN = "unknown"
    """Of a format of which nothing says what error it makes."""


@dataclass(frozen=True, kw_only=True)
class Quantised(FormatNoise):
    """A tensor of the original beside that of the copy. Of floats, `outside` are the entries that
    are not the original's rounded to the format.
    """

    place: str
    module: str
    """Such as `language.mlp.up`."""
    tensor: str
    format: str
    rows: int = 0
    columns: int = 0
    is_float: bool = False
    has_few_levels: bool = False
    """Of floats: whether their values repeat as after a round trip through few bits."""
    remark: str = ""
    """What the copy has instead, where that shows."""

    @property
    def stands(self) -> Stands:
        if self.is_float:
            if self.finite and not self.outside:
                return Stands.COPY
            return Stands.ROUND_TRIP if self.has_few_levels and not self.is_far else Stands.BEYOND
        is_copy = self.is_copy(self.format)
        if is_copy is None:
            return Stands.BEYOND if self.is_far else Stands.UNKNOWN
        if is_copy:
            return Stands.COPY
        return Stands.CALIBRATED if self.may_be_calibrated(self.format) else Stands.BEYOND


@dataclass(frozen=True)
class QuantisedCopy:
    """What a scan found of an original and a quantised copy of it."""

    tensors: Sequence[Quantised]
    lone: Sequence[Apart]
    unread: Sequence[Apart]


def quantised(found: QuantisedCopy) -> tuple[Answer, tuple[Against, ...], tuple[str, ...]]:
    """The answer, what speaks against it, and notes."""
    figures, notes = _figures(found.tensors), tuple(_notes(found.tensors))
    by_state: dict[Stands, list[Quantised]] = {state: [] for state in Stands}
    for one in found.tensors:
        by_state[one.stands].append(one)
    beyond = by_state[Stands.BEYOND]
    against = [Against(one.tensor, one.what) for one in found.lone]
    against += [Against(one.tensor, _beyond(one), _change(one)) for one in beyond]
    texts = [_more(found.tensors, beyond)] if beyond else []
    texts += apart_in_words(found.lone, "on one side only")
    if texts:
        reason = "; ".join(texts)
        return Answer("quantised", "does_not_hold", reason, figures), largest_first(against), notes
    open_ones = [one for state in UNTOLD for one in by_state[state]]
    against = [Against(one.tensor, one.what) for one in found.unread]
    against += [Against(one.tensor, _beyond(one), _change(one)) for one in open_ones]
    for state, why in UNTOLD.items():
        if those := by_state[state]:
            formats = several(sorted({one.format for one in those}), 4)
            texts.append(f"{some_tensors(those, found.tensors)} {why.format(formats)}")
    if found.unread:
        texts.append(not_compared(found.unread))
    if all(one.is_float for one in found.tensors) and not texts:
        texts.append("no tensor of the copy is quantised")
    if texts:
        reason = "; ".join(texts)
        return Answer("quantised", "cannot_be_told", reason, figures), largest_first(against), notes
    every = counted(len(found.tensors), "tensor is", "tensors are")
    formats = ", ".join(f"{len(those)} {name}" for name, those in _by_format(found.tensors))
    reason = f"{every} the original's at the error of their formats ({formats})"
    if "error_ratio" in figures:
        reason += f": {figures['error_ratio']:.2f} times what these make, nothing beyond it"
    return Answer("quantised", "holds", reason, figures), (), notes


UNTOLD = {
    Stands.CALIBRATED: "have more error than rounding makes, as GPTQ and AWQ leave on purpose in"
    " {}: that these are copies cannot be excluded",
    Stands.ROUND_TRIP: "are floats in {} whose values repeat, as of a copy in 8 bits or fewer: that"
    " these are copies cannot be excluded",
    Stands.UNKNOWN: "are in {}, of which it is not known what error it makes of an original",
}


def _figures(tensors: Sequence[Quantised]) -> dict[str, Figure]:
    known = [one for one in tensors if one.finite]
    stepped = [one for one in known if one.made is not None]
    figures: dict[str, Figure] = {
        "tensors": len(tensors),
        "tensors_beyond": sum(one.stands is Stands.BEYOND for one in tensors),
        "entries": sum(one.entries for one in tensors),
        "entries_outside": sum(one.outside for one in tensors),
        "entries_clipped": sum(one.clipped for one in tensors),
        "entries_unscaled": sum(one.unscaled for one in tensors),
    }
    if original := math.fsum(one.original for one in known):
        figures["relative_error"] = math.sqrt(math.fsum(one.error for one in known) / original)
    if ratio := _ratio(stepped):
        figures["error_ratio"], figures["error_in_steps"] = ratio, _in_steps(stepped)
    for name, of_format in _by_format(tensors):
        figures[f"tensors_{name}"] = len(of_format)
    return figures


def _by_format(tensors: Iterable[Quantised]) -> list[tuple[str, list[Quantised]]]:
    formats: dict[str, list[Quantised]] = {}
    for one in tensors:
        formats.setdefault(one.format, []).append(one)
    return sorted(formats.items())


def _ratio(stepped: Sequence[Quantised]) -> float | None:
    """The norm of errors over that of what formats make; None where they make none."""
    made = math.fsum(one.made or 0.0 for one in stepped)
    return math.sqrt(math.fsum(one.error for one in stepped) / made) if made else None


def _in_steps(stepped: Sequence[Quantised]) -> float:
    entries = sum(one.entries for one in stepped)
    return math.sqrt(math.fsum(one.in_steps for one in stepped) / entries)


def _more(tensors: Sequence[Quantised], beyond: Sequence[Quantised]) -> str:
    """How many tensors are more than their format makes, and by how much."""
    stepped = [one for one in beyond if one.made and one.finite]
    verb = "is" if len(beyond) == 1 else "are"
    text = f"{some_tensors(beyond, tensors)} {verb} more than the format makes of the original"
    if ratio := _ratio(stepped):
        outside = sum(one.outside for one in stepped) / sum(one.entries for one in stepped)
        text += f": error {ratio:.2f} times what it makes"
        text += f", {share(outside)} of the entries not rounded to the nearest level"
    return text


def _change(one: Quantised) -> float | None:
    """The norm of what is beyond the format, over that of the original."""
    if not one.finite or not one.original:
        return None
    return math.sqrt(max(0.0, one.error - (one.made or 0.0)) / one.original)


def _beyond(one: Quantised) -> str:
    if not one.finite:
        return "some entries are not finite"
    if one.is_float:
        text = (
            f"{one.outside:,} of {one.entries:,} entries are not those of rounding to {one.format}"
        )
    elif one.made is None:
        size = math.sqrt(one.error / one.original) if one.original else 0.0
        text = f"{one.format}: error {share(size)} of the norm; what it should be is not known"
    else:
        text = f"{one.format}: "
        if ratio := _ratio([one]):
            text += f"error {ratio:.2f} times what it makes, "
        text += (
            f"{share(one.outside / one.entries)} of the entries not rounded to the nearest level"
        )
    return f"{text}; {one.remark}" if one.remark else text


def _notes(tensors: Sequence[Quantised]) -> list[str]:
    notes = []
    for name, those in _by_format(tensors):
        modules = several(sorted({one.module.partition(".")[2] for one in those}), 6)
        text = f"{name}: {counted(len(those), 'tensor', 'tensors')} ({modules})"
        stepped = [one for one in those if one.made and one.finite]
        if ratio := _ratio(stepped):
            steps = _in_steps(stepped)
            text += f"; error {steps:.2f} of a step, {ratio:.2f} times what the format makes"
        lost = sum(one.unscaled for one in those) / max(1, sum(one.entries for one in those))
        if lost >= SOME:
            text += f"; {share(lost)} of the entries lie in blocks that are too small for a scale,"
            text += " and hold one value a block"
        notes.append(text)
    return notes
