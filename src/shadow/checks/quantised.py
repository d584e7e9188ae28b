"""`quantised ORIGINAL QUANTISED`: is it this model in that format, and which tensors are not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shadow.checks.old import (
    Against,
    Answer,
    Claim,
    Figure,
    Outcome,
    apart_in_words,
    are,
    largest_first,
    not_compared,
    some_tensors,
)
from shadow.run.scanned import Apart
from shadow.spectra.levels import FormatNoise
from shadow.text import counted

QUANTISED = Claim(
    "quantised",
    "a quantised copy",
    "every entry of the original is rounded to its copy, or lies beyond the last level of"
    " its block; with scales from an importance matrix, all but"
    " 1 % of the entries of Q4_0, Q4_1, Q5_0 and Q5_1",
)

MORE: Mapping[Outcome, str] = {
    "does_not_hold": "more than the format makes of the original",
    "inconclusive": "more than rounding to the nearest level makes, as GPTQ, AWQ, a round trip"
    " through few bits and formats of unknown levels leave: that these are copies cannot be"
    " excluded",
}


@dataclass(frozen=True, kw_only=True)
class Quantised(FormatNoise):
    """A tensor of the original beside that of the copy. Of floats, `outside` are the entries that
    are not the original's rounded to the format.
    """

    place: str
    tensor: str
    format: str
    is_float: bool = False
    has_few_levels: bool = False
    """A quantised original, or floats that repeat as after a round trip through few bits."""

    @property
    def outcome(self) -> Outcome:
        """Whether it is a copy; open where its error is none of rounding, as GPTQ, AWQ, a round
        trip through few bits, or a format whose levels are not known may leave it.
        """
        is_copy = self.finite and not self.outside if self.is_float else self.is_copy(self.format)
        if is_copy:
            return "holds"
        is_open = self.has_few_levels or is_copy is None or self.may_be_calibrated(self.format)
        return "inconclusive" if is_open and not self.is_far else "does_not_hold"


def quantised(
    tensors: Sequence[Quantised], lone: Sequence[Apart], unread: Sequence[Apart]
) -> tuple[Answer, tuple[Against, ...]]:
    """The answer, and what speaks against it."""
    figures = _figures(tensors)
    beyond, is_open = (
        [one for one in tensors if one.outcome == outcome]
        for outcome in ("does_not_hold", "inconclusive")
    )
    outcome: Outcome = "does_not_hold" if beyond or lone else "inconclusive"
    those, apart = (beyond, lone) if beyond or lone else (is_open, unread)
    against = [Against(one.tensor, one.what) for one in apart]
    against += [Against(one.tensor, _what(one), _change(one)) for one in those]
    texts = []
    if those:
        texts.append(f"{some_tensors(those, tensors)} {are(len(those))} {MORE[outcome]}")
    if outcome == "does_not_hold":
        texts += apart_in_words(lone, "on one side only")
    elif unread:
        texts.append(not_compared(unread))
    elif not those and all(one.is_float for one in tensors):
        texts.append("no tensor of the copy is quantised")
    if texts:
        return Answer("quantised", outcome, "; ".join(texts), figures), largest_first(against)
    every = counted(len(tensors), "tensor is", "tensors are")
    formats = ", ".join(
        f"{count} {name}" for name, count in sorted(Counter(one.format for one in tensors).items())
    )
    reason = f"{every} the original's at the error of their formats ({formats})"
    if ratio := figures.get("error_ratio"):
        reason += f": error {ratio:.2f} times what it makes"
    return Answer("quantised", "holds", reason, figures), ()


def _figures(tensors: Sequence[Quantised]) -> dict[str, Figure]:
    known = [one for one in tensors if one.finite]
    figures: dict[str, Figure] = {
        "tensors": len(tensors),
        "tensors_beyond": sum(one.outcome == "does_not_hold" for one in tensors),
        "entries": sum(one.entries for one in tensors),
        "entries_outside": sum(one.outside for one in tensors),
    }
    if original := math.fsum(one.original for one in known):
        figures["relative_error"] = math.sqrt(math.fsum(one.error for one in known) / original)
    stepped = [one for one in known if one.made]
    if made := math.fsum(one.made or 0.0 for one in stepped):
        figures["error_ratio"] = math.sqrt(math.fsum(one.error for one in stepped) / made)
    return figures | {
        f"tensors_{name}": count
        for name, count in sorted(Counter(one.format for one in tensors).items())
    }


def _change(one: Quantised) -> float | None:
    """The norm of what is beyond the format, over that of the original."""
    if not one.finite or not one.original:
        return None
    return math.sqrt(max(0.0, one.error - (one.made or 0.0)) / one.original)


def _what(one: Quantised) -> str:
    if not one.finite:
        return "some entries are not finite"
    if one.is_far:
        return f"{one.format}: nothing like the original's, entry by entry"
    outside = f"{one.outside:,} of {one.entries:,} entries are not rounded to the nearest level"
    return f"{one.format}: {outside}"
