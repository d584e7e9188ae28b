"""`stored FULL STORED [--base BASE]`: what a saved copy in fewer bits kept."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.checks.answer import Against, Answer, Check, Evidence, Figure
from shadow.run.scanned import Unmatched, in_order, not_compared, unmatched_reasons
from shadow.templates import Reason

if TYPE_CHECKING:
    from shadow.checkpoints.opening import Checkpoint
    from shadow.checkpoints.pairing import MatrixPair
    from shadow.checks.answer import Question
    from shadow.places.architecture import Place
    from shadow.run.runtime import Gathering, Runtime
    from shadow.spectra.copies import Kept
    from shadow.spectra.spectrum import Sides

MERGED = 0.5  # of the distinct values of a vector, below which a copy has merged them
COUNTED = 1 << 22  # entries up to which the distinct values of a vector are counted
KEPT = 0.9  # of the update's energy, from which on a copy kept the update
WORDS = {
    "crushed": "{tensors:count tensor|tensors} that the model keeps in F32 {tensors|is|are} crushed"
    " in {formats}",
    "values": "{before:count value|values} become {after:count}[ in {tensor}]",
    "merged": "in {vectors:count vector|vectors} rounding merged more than half of the values:"
    " {which}",
    "emptied": "rounding left only zeros in {tensors:count tensor|tensors}: {which}",
    "rounded": "{tensors:count tensor is|tensors are} the full model's rounded to {formats}",
    "off": "{off:count} of {tensors:count tensor|tensors} {off|is|are} not the full model's rounded"
    " to {formats}, in {entries:count entry|entries}",
    "kept": "it keeps {kept:share} of the update's energy",
    "error": "error {error:share} of the norm of all tensors",
    "no_update": "the full model is equal to the base: there is no update to keep",
    "no_base": "the base has no such tensor",
    "unknown_format": "what {format} makes of an original is unknown",
    "entries": "{off:count} of {entries:count} entries are not those of rounding to {format}",
    "some_not_finite": "{off:count} of {entries:count} entries are not those of rounding to"
    " {format}; some are not finite",
    "module": "{kept:share} of the update's energy is kept",
    "without_norm": "{tensors:count tensor has|tensors have} entries that are not finite; no norm"
    " counts them",
}


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A tensor of the full model, or a part of one, and its copy."""

    place: Place
    tensor: str
    sums: Kept
    full: str = ""  # what the full model calls it
    values: tuple[int, int] = (0, 0)
    """How many distinct values a vector has in the full model and in the copy; 0 if they are not
    counted.
    """

    @property
    def is_merged(self) -> bool:
        """True if the copy has less than half of its distinct values."""
        before, after = self.values
        return after < MERGED * before

    @property
    def is_emptied(self) -> bool:
        """True if rounding left only zeros, so that all of it is the error."""
        sums = self.sums
        return sums.full > 0 and sums.copy == 0 and sums.error == sums.full

    @property
    def module(self) -> str:
        """Such as `language.mlp.up`."""
        return f"{self.place.component}.{self.place.module}"


@dataclass(frozen=True)
class Copy(Evidence):
    """A full model and a copy of it."""

    tensors: Sequence[StoredPart]
    has_base: bool = False
    in_f32: Collection[str] = ()  # tensors of the full model that its class keeps in F32


def judge(evidence: Copy) -> Answer:
    """Judge whether every tensor is only rounded and, with a base, the update mostly left."""
    tensors = evidence.tensors
    off = [part for part in tensors if part.sums.off]
    figures = _figures(evidence)
    share = figures.get("update_kept") if evidence.has_base else None
    is_lost = share is not None and share < KEPT
    error = figures.get("relative_error")
    measured = []
    if share is not None:
        measured.append(Reason("kept", kept=max(0.0, share)))
    elif error is not None:
        measured.append(Reason("error", error=error))
    merged = [part for part in tensors if part.is_merged]
    merged.sort(key=lambda part: (part.values[1], part.tensor))
    crushed = [part for part in merged if part.full in evidence.in_f32]
    figures["vectors_merged"] = len(merged)
    figures["tensors_crushed"] = len(crushed)
    counts = {"off": len(off), "tensors": len(tensors)}
    faults = []
    if off:
        faults.append(_of(off, "off", {**counts, "entries": int(figures["entries_off"])}))
    if crushed:
        faults.append(_of(crushed, "crushed", {"tensors": len(crushed)}))
    faults += unmatched_reasons(evidence.unmatched)
    doubts = not_compared(evidence.unread)
    if not doubts and evidence.has_base and share is None:
        doubts = [Reason("no_update")]
    against = [_entries(part) for part in off]
    against += [Against(part.tensor, _values(part)) for part in crushed]
    if is_lost:
        against += _lost(tensors)
    return evidence.judged(
        figures,
        faults=[*faults, *measured] if faults or is_lost else [],
        doubts=doubts,
        holds=[_of(tensors, "rounded", counts), *measured],
        against=against,
        notes=_notes(tensors, merged),
    )


def _notes(tensors: Sequence[StoredPart], merged: Sequence[StoredPart]) -> list[Reason]:
    """Make the notes on an answer. merged: the vectors that lost most of their values."""
    notes = []
    if merged:
        which = [_values(part, part.tensor) for part in merged]
        notes.append(Reason("merged", vectors=len(merged), which=which))
    emptied = [part.tensor for part in tensors if part.is_emptied]
    if emptied:
        notes.append(Reason("emptied", tensors=len(emptied), which=emptied))
    unknown = sum(not part.sums.finite for part in tensors)
    if unknown:
        notes.append(Reason("without_norm", tensors=unknown))
    return notes


def _values(part: StoredPart, tensor: str | None = None) -> Reason:
    before, after = part.values
    return Reason("values", before=before, after=after, tensor=tensor)


def left_of_update(tensors: Iterable[StoredPart]) -> tuple[float, float] | None:
    """The share of the update's energy that is left, as the squared cosine of the stored update and
    the update, and the norm of copy - full over that of the update. None without an update.
    """
    known = [part.sums for part in tensors if part.sums.finite and part.sums.update is not None]
    update = math.fsum(sums.update or 0.0 for sums in known)
    if not update:
        return None
    stored = math.fsum(sums.stored_update or 0.0 for sums in known)
    inner = math.fsum(sums.inner or 0.0 for sums in known)
    error = math.fsum(sums.error for sums in known)
    share = min(1.0, inner * abs(inner) / (update * stored)) if stored else 0.0
    return share, math.sqrt(error / update)


def _figures(evidence: Copy) -> dict[str, Figure]:
    every = [part.sums for part in evidence.tensors]
    known = [sums for sums in every if sums.finite]
    figures: dict[str, Figure] = {
        "tensors": len(every),
        "entries": sum(sums.entries for sums in every),
        "entries_off": sum(sums.off for sums in every),
    }
    full = math.fsum(sums.full for sums in known)
    if full:
        error = math.fsum(sums.error for sums in known)
        figures["relative_error"] = math.sqrt(error / full)
    left = left_of_update(evidence.tensors) if evidence.has_base else None
    if left is not None:
        share, error = left
        figures["update_kept"] = share
        figures["update_cosine"] = math.sqrt(max(0.0, share))
        figures["error_over_update"] = error
    return figures


def _entries(part: StoredPart) -> Against:
    sums = part.sums
    code = "entries" if sums.finite else "some_not_finite"
    why = Reason(code, off=sums.off, entries=sums.entries, format=sums.grid)
    relative = None
    if sums.finite and sums.full:
        relative = math.sqrt(sums.error / sums.full)
    return Against(part.tensor, why, relative)


def _lost(tensors: Sequence[StoredPart]) -> Iterator[Against]:
    """Yield the modules that kept too little of the update."""
    modules: dict[str, list[StoredPart]] = {}
    for part in tensors:
        modules.setdefault(part.module, []).append(part)
    for name, of_module in modules.items():
        left = left_of_update(of_module)
        if left is not None and left[0] < KEPT:
            share, error = left
            yield Against(name, Reason("module", kept=max(0.0, share)), error)


def _of(tensors: Sequence[StoredPart], code: str, counts: Mapping[str, int]) -> Reason:
    """Make a reason about tensors, with their formats."""
    formats = sorted({part.sums.grid for part in tensors})
    return Reason(code, counts, formats=formats)


def gather(question: Question, runtime: Runtime, scratch: Path) -> Gathering[Copy]:
    """Compare a full model with a copy, and with its base if one is given."""
    from shadow.checkpoints.pairing import Filter, pair_checkpoints
    from shadow.checks.whole.names import gather_expected
    from shadow.run.aligned import align_all, plain
    from shadow.run.scan import fetch_all, in_words, require_unchanged, scan
    from shadow.run.sides import find_checkpoints, opened_models

    named = question.named
    if question.base is not None:
        named["BASE"] = question.base
    sides = find_checkpoints(named, runtime, scratch)
    full, copy, *more = opened_models(sides, runtime, scratch)
    aligned = align_all(full, copy, ("the full model", "the copy"))
    base = plain(more[0]) if more else None
    bases: dict[Place, MatrixPair] = {}
    if base is not None:
        runtime = fetch_all([base], runtime)
        pairs, _ = pair_checkpoints(base, aligned.pair.base, Filter(), may_differ=True)
        bases = {pair.place: pair for pair in pairs if pair.base is not None}
    rows = yield from scan(
        aligned.pair,
        lambda pair, a, b: _copied(pair, a, b, base, bases.get(pair.place)),
        runtime,
        scratch / "scan",
        aligned.unread,
    )
    tensors = sorted(rows, key=lambda row: (row.tensor, in_words(row.place)))
    require_unchanged(more)
    unread = {*aligned.unread}
    for row in tensors:
        sums = row.sums
        if more and sums.update is None and sums.finite and sums.full:
            unread.add(Unmatched(row.tensor, "base", Reason("no_base")))
    in_f32: Collection[str] = ()
    # no class keeps plain norms in F32, which lose as many values
    if any(row.is_merged and row.place.module != "norm" for row in tensors):
        in_f32 = gather_expected(full, runtime.cache, scratch / "loader", is_cut=False).in_f32
    return Copy(
        tensors,
        base is not None,
        in_f32,
        unmatched=aligned.unmatched,
        unread=sorted(unread, key=in_order),
        notes=aligned.notes,
    )


def _copied(
    pair: MatrixPair,
    full: Checkpoint,
    copy: Checkpoint,
    base: Checkpoint | None,
    before: MatrixPair | None,
) -> StoredPart | Unmatched:
    """Compare a tensor of the full model with its copy. before: the base's and the full model's."""
    import torch

    from shadow.run.aligned import row_of
    from shadow.run.scan import is_raw, sides_of
    from shadow.run.workers import views
    from shadow.spectra.copies import Kept, kept_of_copy
    from shadow.spectra.spectrum import working_dtype

    assert pair.base is not None, "lined up"
    name = pair.tuned.info.name
    stored = pair.tuned.info.dtype
    if is_raw(pair):
        row = row_of(pair, full, copy)
        return StoredPart(pair.place, row.tuned, Kept(row.formats[1], row.entries, row.changed))
    sides = sides_of(pair, full, copy)
    third = None
    if base and before and before.base and before.shape == pair.shape:
        seen, _ = views(replace(before, tuned=pair.base), base, full)
        if seen.shape == sides.tuned.shape:
            third = seen
            if working_dtype(before.base.info.dtype) == torch.float64:
                sides = replace(sides, dtype=torch.float64)
    sums = kept_of_copy(sides, third, stored)
    if sums is None:
        return Unmatched(name, "tuned", Reason("unknown_format", format=stored))
    values = (0, 0) if pair.is_matrix or pair.cols > COUNTED else _distinct(sides)
    return StoredPart(pair.place, name, sums, pair.base.info.name, values)


def _distinct(sides: Sides) -> tuple[int, int]:
    """Count the distinct values of both sides."""
    import torch

    from shadow.spectra.spectrum import tiles

    full = []
    copy = []
    for index, _ in tiles(sides.tuned):
        first, second = sides.read(index)
        full.append(first.flatten().clone())
        copy.append(second.flatten().clone())
    return len(torch.unique(torch.cat(full))), len(torch.unique(torch.cat(copy)))


CHECK = Check(
    "stored",
    "what a copy kept",
    "every entry of the copy is the full model's rounded to the copy's format, or to the nearest"
    " level of a quantised one; with a base, at"
    f" least {100 * KEPT:.0f} % of the update's energy is kept as well",
    judge,
    WORDS,
    gather,
    checkpoints=("FULL", "STORED"),
    says="STORED is FULL, rounded",
    options=("base",),
)
