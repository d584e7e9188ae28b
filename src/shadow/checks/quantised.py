"""`quantised ORIGINAL QUANTISED`: whether it is this model in that format, and where it is not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.checks.answer import Against, Answer, Check, Evidence, Figure, Outcome
from shadow.checks.trained import some_of
from shadow.run.scanned import not_compared, unmatched_reasons
from shadow.templates import Reason

if TYPE_CHECKING:
    from shadow.checkpoints.opening import Checkpoint
    from shadow.checkpoints.pairing import MatrixPair
    from shadow.checks.answer import Question
    from shadow.run.runtime import Gathering, Runtime
    from shadow.spectra.levels import FormatNoise

WORDS = {
    "beyond": "{some:count} of {tensors:count tensor|tensors} {some|is|are} more than the format"
    " makes of the original",
    "not_excluded": "{some:count} of {tensors:count tensor|tensors} {some|is|are} more than"
    " rounding to the nearest level makes, as GPTQ, AWQ, a round trip through few bits and formats"
    " of unknown levels leave: that these are copies cannot be excluded",
    "floats": "no tensor of the copy is quantised",
    "at_error": "{tensors:count tensor is|tensors are} the original's with the error of their"
    " formats ({formats})[: error {ratio:fixed} times what it makes]",
    "in_format": "{tensors:count} {format}",
    "far": "{format}: nothing like the original's, entry by entry",
    "scaled": "{format}: the original's times {factor:factor}",
    "outside": "{format}: {outside:count} of {entries:count} entries are not rounded to the nearest"
    " level",
}


@dataclass(frozen=True)
class Copied:
    """A tensor of the original, and that of the copy."""

    tensor: str
    format: str
    noise: FormatNoise
    """Of floats, `outside` are the entries that are not the original's rounded to the format."""
    is_float: bool = False
    has_few_levels: bool = False
    """A quantised original, or floats that repeat as after a round trip through few bits."""

    @property
    def outcome(self) -> Outcome:
        """The outcome: inconclusive if the error may come from GPTQ, AWQ, a round trip through few
        bits, or a format whose levels are unknown.
        """
        cause = self.noise.may_be(self.format)
        if cause == "copy":
            return Outcome.HOLDS
        is_open = (cause or self.has_few_levels) and not self.noise.is_far
        return Outcome.INCONCLUSIVE if is_open else Outcome.DOES_NOT_HOLD

    @property
    def against(self) -> Against:
        """The reason that it is not a copy, with the size of what is beyond the format."""
        noise = self.noise
        size = None
        code = "far" if noise.is_far else "outside"
        if not noise.finite:
            code = "not_finite"
        elif noise.original:
            if noise.factor is not None:
                code = "scaled"
            beyond = max(0.0, noise.error - (noise.made or 0.0))
            size = math.sqrt(beyond / noise.original)
        why = Reason(
            code,
            format=self.format,
            outside=noise.outside,
            entries=noise.entries,
            factor=noise.factor,
        )
        return Against(self.tensor, why, size)


@dataclass(frozen=True)
class Copies(Evidence):
    """Every tensor of an original and of a copy."""

    tensors: Sequence[Copied]


def judge(copies: Copies) -> Answer:
    """Name what no format can cause; what a quantiser may have caused is open."""
    tensors = copies.tensors
    beyond = [tensor for tensor in tensors if tensor.outcome is Outcome.DOES_NOT_HOLD]
    unsure = [tensor for tensor in tensors if tensor.outcome is Outcome.INCONCLUSIVE]
    formats = sorted(Counter(tensor.format for tensor in tensors).items())
    figures = _figures([tensor.noise for tensor in tensors])
    figures["tensors_beyond"] = len(beyond)
    figures |= {f"tensors_{name}": count for name, count in formats}
    faults = some_of("beyond", beyond, tensors)
    faults += unmatched_reasons(copies.unmatched)
    doubts = some_of("not_excluded", unsure, tensors)
    doubts += not_compared(copies.unread)
    if not doubts and all(tensor.is_float for tensor in tensors):
        doubts = [Reason("floats")]
    named = []
    for name, count in formats:
        named.append(Reason("in_format", tensors=count, format=name))
    ratio = figures.get("error_ratio") or None
    reason = Reason("at_error", tensors=len(tensors), formats=named, ratio=ratio)
    return copies.judged(
        figures,
        faults=faults,
        doubts=doubts,
        holds=[reason],
        against=[tensor.against for tensor in beyond],
        doubtful=[tensor.against for tensor in unsure],
    )


def _figures(every: Sequence[FormatNoise]) -> dict[str, Figure]:
    known = [noise for noise in every if noise.finite]
    stepped = [noise for noise in known if noise.made]
    figures: dict[str, Figure] = {
        "tensors": len(every),
        "entries": sum(noise.entries for noise in every),
        "entries_outside": sum(noise.outside for noise in every),
    }
    original = math.fsum(noise.original for noise in known)
    if original:
        error = math.fsum(noise.error for noise in known)
        figures["relative_error"] = math.sqrt(error / original)
    of_formats = math.fsum(noise.made or 0.0 for noise in stepped)
    if of_formats:
        error = math.fsum(noise.error for noise in stepped)
        figures["error_ratio"] = math.sqrt(error / of_formats)
    return figures


def gather(question: Question, runtime: Runtime, scratch: Path) -> Gathering[Copies]:
    """Compare every tensor of an original with its copy."""
    from shadow.run.aligned import align_all
    from shadow.run.scan import scan
    from shadow.run.sides import find_checkpoints, opened_models

    original, copy = opened_models(
        find_checkpoints(question.named, runtime, scratch), runtime, scratch
    )
    aligned = align_all(original, copy, ("the original", "the copy"))
    tensors = yield from scan(aligned.pair, _copied, runtime, scratch / "scan", aligned.unread)
    return Copies(tensors, unmatched=aligned.unmatched, unread=aligned.unread, notes=aligned.notes)


def _copied(pair: MatrixPair, original: Checkpoint, copy: Checkpoint) -> Copied:
    from shadow.run.aligned import row_of
    from shadow.run.scan import is_raw, sides_of
    from shadow.spectra.copies import Kept, has_few_levels, kept_of
    from shadow.spectra.lazy import is_quantised
    from shadow.spectra.relations.format_noise import format_noise

    info = pair.tuned.info
    if is_raw(pair):
        row = row_of(pair, original, copy)
        sums = Kept(row.formats[1], row.entries, row.changed)
        return Copied(info.name, sums.grid, sums.noise, is_float=True)
    sides = sides_of(pair, original, copy)
    if is_quantised(sides.tuned):
        noise = format_noise(sides.base, sides.tuned)
        return Copied(info.name, info.dtype, noise, has_few_levels=is_quantised(sides.base))
    sums = kept_of(sides, None, info.dtype)
    few = sums.off > 0 and pair.is_matrix and has_few_levels(sides.base, sides.tuned)
    return Copied(info.name, sums.grid, sums.noise, is_float=True, has_few_levels=few)


CHECK = Check(
    "quantised",
    "a quantised copy",
    "every entry of the original is rounded to its copy, or lies beyond the last level of"
    " its block; with scales from an importance matrix, all but"
    " 1 % of the entries of Q4_0, Q4_1, Q5_0 and Q5_1",
    judge,
    WORDS,
    gather,
    checkpoints=("ORIGINAL", "QUANTISED"),
    says="no error beyond that of the format",
)
