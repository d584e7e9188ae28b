"""`quantised ORIGINAL QUANTISED`: whether a quantised copy is the original's, at the error that its
own formats make and no more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
    null="the error that the file's own levels make of any original",
)
# `uneven` of copies without an importance matrix was at most .008 in these formats, where columns
# differ in size by a factor e, and of copies with one as uneven .013 to .04. Other K types tell by
# the codes of their scales.
WEIGHED = {"Q4_1", "Q5_1", "Q6_K"}
UNEVEN = 0.012
CHANCE = 1e-6  # that some column without an entry outside is chance
SOME = 0.001  # the share of entries without a scale from which a note says so
FAR = 0.5  # the cosine of original and copy below which it is not a copy of this tensor


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
    remark: str = ""
    """What the copy has instead, where that shows."""

    @property
    def is_exact(self) -> bool:
        """Whether the format's own quantiser makes this copy, bit for bit."""
        return self.requantised == self.entries or (self.is_float and not self.outside)

    @property
    def is_known(self) -> bool:
        """Whether it is known what error the format makes, or that it makes this copy."""
        return self.is_exact or self.is_float or self.made is not None

    @property
    def is_beyond(self) -> bool:
        """Whether the copy is more than its format makes of the original."""
        if self.is_float:
            return not self.finite or self.outside > 0
        is_copy = self.is_copy(self.format)
        return self.is_far if is_copy is None else not is_copy

    @property
    def is_far(self) -> bool:
        """Whether the copy is not one of this tensor, however it was made."""
        is_empty = self.copy == 0 < self.original
        return is_empty or self.inner < FAR * math.sqrt(self.original * self.copy)

    @property
    def is_weighed(self) -> bool:
        """Whether scales look like those of an importance matrix."""
        if self.is_exact or self.is_beyond:
            return False
        is_uneven = self.format in WEIGHED and self.uneven > UNEVEN
        return self.outside > 0 or self.refitted > 0 or is_uneven

    @property
    def ratio(self) -> float | None:
        """The norm of the error over that of what the format makes."""
        return math.sqrt(self.error / self.made) if self.made else None

    @property
    def calibration(self) -> str | None:
        """How a calibration made of the original what is beyond its format, where that shows:
        `GPTQ` rounds one column to the nearest levels and moves the others to make up for it,
        `AWQ` scales columns first.
        """
        if not self.is_beyond or self.is_far or not self.made or not self.finite:
            return None
        if self.scaled < 1.2**2 * self.made < self.error:
            return "AWQ"
        elsewhere = self.columns - self.clean_columns
        if 0 < self.clean_columns <= max(2, self.columns // 128):
            # how likely a column has no entry outside, if those of the others lie evenly
            odds = 1.0 - self.outside / max(1, self.rows * elsewhere)
            chance = self.columns * max(odds, 0.0) ** self.rows
            if chance < CHANCE and self.error < 4.0**2 * self.made:
                return "GPTQ"
        return None


@dataclass(frozen=True)
class QuantisedCopy:
    """What a scan found of an original and a quantised copy of it."""

    tensors: Sequence[Quantised]
    lone: Sequence[Apart]
    unread: Sequence[Apart]


def quantised(found: QuantisedCopy) -> tuple[Answer, tuple[Against, ...], tuple[str, ...]]:
    """The answer, what speaks against it, and notes."""
    figures = _figures(found.tensors)
    notes = tuple(_notes(found.tensors))
    beyond = [one for one in found.tensors if one.is_beyond]
    calibrated = [one for one in beyond if one.calibration]
    unknown = [one for one in found.tensors if not one.is_known]
    against = [Against(one.tensor, one.what) for one in found.lone]
    against += [Against(one.tensor, _beyond(one), _change(one)) for one in beyond]
    texts = []
    if changed := [one for one in beyond if not one.calibration]:
        texts.append(_more(found.tensors, changed))
    texts += apart_in_words(found.lone, "on one side only")
    if texts:
        reason = "; ".join(texts)
        return Answer("quantised", "does_not_hold", reason, figures), largest_first(against), notes
    against += [Against(one.tensor, one.what) for one in found.unread]
    against += [Against(one.tensor, _no_null(one)) for one in unknown]
    if calibrated:
        names = " and ".join(sorted({one.calibration or "" for one in calibrated}))
        texts.append(
            f"{some_tensors(calibrated, found.tensors)} look calibrated ({names}): their error is"
            " more than rounding makes, and what it should be is not known"
        )
    if unknown:
        formats = several(sorted({one.format for one in unknown}), 4)
        texts.append(f"it is not known what error {formats} makes of an original")
    if found.unread:
        texts.append(not_compared(found.unread))
    if not any(one.is_known and not one.is_float for one in found.tensors) and not texts:
        texts.append("no tensor of the copy is quantised")
    if texts:
        reason = "; ".join(texts)
        return Answer("quantised", "cannot_be_told", reason, figures), largest_first(against), notes
    every = counted(len(found.tensors), "tensor is", "tensors are")
    reason = f"{every} the original's at the error of their formats ({_formats(found.tensors)})"
    if "error_ratio" in figures:
        reason += f": {figures['error_ratio']:.2f} times what these make, nothing beyond it"
    return Answer("quantised", "holds", reason, figures), (), notes


def _figures(tensors: Sequence[Quantised]) -> dict[str, Figure]:
    known = [one for one in tensors if one.finite]
    stepped = [one for one in known if one.made is not None]
    figures: dict[str, Figure] = {
        "tensors": len(tensors),
        "tensors_beyond": sum(one.is_beyond for one in tensors),
        "tensors_exact": sum(one.is_exact for one in tensors),
        "entries": sum(one.entries for one in tensors),
        "entries_outside": sum(one.outside for one in tensors),
        "entries_clipped": sum(one.clipped for one in tensors),
        "entries_unscaled": sum(one.unscaled for one in tensors),
    }
    if original := math.fsum(one.original for one in known):
        figures["relative_error"] = math.sqrt(math.fsum(one.error for one in known) / original)
    if made := math.fsum(one.made or 0.0 for one in stepped):
        figures["error_ratio"] = math.sqrt(math.fsum(one.error for one in stepped) / made)
        entries = sum(one.entries for one in stepped)
        figures["error_in_steps"] = math.sqrt(math.fsum(one.in_steps for one in stepped) / entries)
    for name, of_format in _by_format(tensors):
        figures[f"tensors_{name}"] = len(of_format)
    return figures


def _by_format(tensors: Iterable[Quantised]) -> list[tuple[str, list[Quantised]]]:
    formats: dict[str, list[Quantised]] = {}
    for one in tensors:
        formats.setdefault(one.format, []).append(one)
    return sorted(formats.items())


def _formats(tensors: Sequence[Quantised]) -> str:
    return ", ".join(f"{len(those)} {name}" for name, those in _by_format(tensors))


def _more(tensors: Sequence[Quantised], beyond: Sequence[Quantised]) -> str:
    """How many tensors are more than their format makes, and by how much."""
    stepped = [one for one in beyond if one.made and one.finite]
    verb = "is" if len(beyond) == 1 else "are"
    text = f"{some_tensors(beyond, tensors)} {verb} more than the format makes of the original"
    if made := math.fsum(one.made or 0.0 for one in stepped):
        ratio = math.sqrt(math.fsum(one.error for one in stepped) / made)
        text += f": error {ratio:.2f} times what it makes"
        text += f", {share(_outside(stepped))} of the entries not rounded to the nearest level"
    return text


def _outside(tensors: Sequence[Quantised]) -> float:
    return sum(one.outside for one in tensors) / sum(one.entries for one in tensors)


def _change(one: Quantised) -> float | None:
    """The norm of what is beyond the format, over that of the original."""
    if not one.finite or not one.original:
        return None
    return math.sqrt(max(0.0, one.error - (one.made or 0.0)) / one.original)


def _beyond(one: Quantised) -> str:
    if not one.finite:
        return "some entries are not finite"
    if one.is_float:
        text = f"{one.outside:,} of {one.entries:,} entries are not those of rounding to"
        return f"{text} {one.format}" + (f"; {one.remark}" if one.remark else "")
    text = f"{one.format}: "
    if one.ratio is not None:
        text += f"error {one.ratio:.2f} times what it makes, "
    text += f"{share(one.outside / one.entries)} of the entries not rounded to the nearest level"
    if one.remark:
        return f"{text}; {one.remark}"
    if one.calibration == "GPTQ":
        return f"{text}; one column is rounded to the nearest levels, as GPTQ leaves it"
    if one.calibration == "AWQ":
        left = math.sqrt(one.scaled / (one.made or 1.0))
        return f"{text}; after a factor for each column, as AWQ has, {left:.2f} times"
    return text


def _no_null(one: Quantised) -> str:
    size = math.sqrt(one.error / one.original) if one.original else 0.0
    return f"{one.format}: error {share(size)} of the norm; what it should be is not known"


def _notes(tensors: Sequence[Quantised]) -> list[str]:
    notes = []
    for name, those in _by_format(tensors):
        modules = several(sorted({one.module.partition(".")[2] for one in those}), 6)
        text = f"{name}: {counted(len(those), 'tensor', 'tensors')} ({modules})"
        stepped = [one for one in those if one.made and one.finite]
        if stepped:
            entries = sum(one.entries for one in stepped)
            steps = math.sqrt(math.fsum(one.in_steps for one in stepped) / entries)
            made = math.fsum(one.made or 0.0 for one in stepped)
            ratio = math.sqrt(math.fsum(one.error for one in stepped) / made)
            text += f"; error {steps:.2f} of a step, {ratio:.2f} times what the format makes"
        exact = sum(one.is_exact for one in those)
        if exact and not those[0].is_float:
            text += f"; {exact:,} requantised bit for bit"
        lost = sum(one.unscaled for one in those) / max(1, sum(one.entries for one in those))
        if lost >= SOME:
            text += f"; {share(lost)} of the entries lie in blocks that are too small for a scale,"
            text += " and hold one value a block"
        notes.append(text)
    if weighed := [one for one in tensors if one.is_weighed]:
        notes.append(
            f"scales of {some_tensors(weighed, tensors)} are not what ggml makes of this original"
            " alone: an importance matrix, another quantiser, or an original that differs a little"
        )
    return notes
