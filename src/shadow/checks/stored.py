"""`stored FULL STORED [--base BASE]`: what a saved copy in fewer bits kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shadow.checks.old import (
    Against,
    Answer,
    Claim,
    Figure,
    apart_in_words,
    are,
    largest_first,
    not_compared,
    some_tensors,
)
from shadow.quantities import share
from shadow.run.scanned import Apart
from shadow.text import counted

KEPT = 0.9  # of the update's energy, from which on a copy kept the update
STORED = Claim(
    "stored",
    "what a copy kept",
    "every entry of the copy is the full model's rounded to the copy's format, or to the nearest"
    " level of a quantised one; with a base, at"
    f" least {100 * KEPT:.0f} % of the update's energy is kept as well",
)
MODULES = 3  # that lost most, in a note
ALL = 0.995  # of the update's energy, which two digits call 100 %


@dataclass(frozen=True, slots=True)
class Copied:
    """A tensor of the full model beside that of the copy. Energies are sums of squares."""

    place: str
    module: str
    """Such as `language.mlp.up`."""
    tensor: str
    grid: str
    """The format of the copy's values: its dtype, or one of fewer bits that is stored in it."""
    entries: int
    off: int
    """Entries that are not the full model's rounded to that format."""
    full: float
    error: float
    """Of copy - full."""
    finite: bool
    is_predicted: bool = True
    """Whether it is known what the format makes of the full model."""
    update: float | None = None
    """Of full - base; None without a base, as those below."""
    stored_update: float | None = None
    """Of copy - base."""
    inner: float | None = None
    unchanged: int | None = None
    """Entries of the copy that are equal to the base's."""
    unchanged_expected: int | None = None
    """Entries that the full model, rounded to the copy's format, has in common with the base."""


@dataclass(frozen=True)
class Copy:
    """What a scan found of a full model and a copy of it."""

    tensors: Sequence[Copied]
    lone: Sequence[Apart]
    unread: Sequence[Apart]
    has_base: bool


def kept(tensors: Iterable[Copied]) -> float | None:
    """The share of the update's energy that is kept: the squared cosine of the stored update and
    the update; None where there is no update.
    """
    known = [one for one in tensors if one.finite and one.update is not None]
    update = math.fsum(one.update or 0.0 for one in known)
    there = math.fsum(one.stored_update or 0.0 for one in known)
    inner = math.fsum(one.inner or 0.0 for one in known)
    if not update:
        return None
    return min(1.0, inner * abs(inner) / (update * there)) if there else 0.0


def error_over_update(tensors: Iterable[Copied]) -> float | None:
    """The norm of copy - full over that of the update; None where there is no update."""
    known = [one for one in tensors if one.finite and one.update is not None]
    update = math.fsum(one.update or 0.0 for one in known)
    return math.sqrt(math.fsum(one.error for one in known) / update) if update else None


def stored(found: Copy) -> tuple[Answer, tuple[Against, ...], tuple[str, ...]]:
    """The answer, what speaks against it, and notes."""
    off = [one for one in found.tensors if one.off]
    figures = _figures(found)
    share_kept = kept(found.tensors) if found.has_base else None
    texts = []
    against = [Against(one.tensor, one.what) for one in found.lone]
    against += [Against(one.tensor, _off(one), _relative(one)) for one in off]
    if off:
        texts.append(_beyond(found, off))
    texts += apart_in_words(found.lone, "on one side only")
    said = _said(figures)
    if share_kept is not None and share_kept < KEPT:
        texts.append(f"it keeps {share(max(0.0, share_kept))} of the update's energy")
        against += _lost(found.tensors)
    notes = tuple(_notes(found, figures))
    if texts:
        if share_kept is None or share_kept >= KEPT:
            texts += said
        answer = Answer("stored", "does_not_hold", "; ".join(texts), figures)
        return answer, largest_first(against), notes
    if found.unread:
        reason = not_compared(found.unread)
        unread = largest_first([Against(one.tensor, one.what) for one in found.unread])
        return Answer("stored", "inconclusive", reason, figures), unread, notes
    if found.has_base and share_kept is None:
        reason = "the full model is equal to the base: there is no update to keep"
        return Answer("stored", "inconclusive", reason, figures), (), notes
    every = counted(len(found.tensors), "tensor is", "tensors are")
    reason = "; ".join([f"{every} the full model's rounded to {_format(found.tensors)}", *said])
    return Answer("stored", "holds", reason, figures), (), notes


def _figures(found: Copy) -> dict[str, Figure]:
    known = [one for one in found.tensors if one.finite]
    full = math.fsum(one.full for one in known)
    entries = sum(one.entries for one in found.tensors)
    figures: dict[str, Figure] = {
        "tensors": len(found.tensors),
        "entries": entries,
        "entries_off": sum(one.off for one in found.tensors),
    }
    if full:
        figures["relative_error"] = math.sqrt(math.fsum(one.error for one in known) / full)
    if found.has_base:
        if (kept_share := kept(known)) is not None:
            figures["update_kept"] = kept_share
            figures["update_cosine"] = math.sqrt(max(0.0, kept_share))
        if (error := error_over_update(known)) is not None:
            figures["error_over_update"] = error
        with_base = [one for one in known if one.unchanged is not None]
        of = sum(one.entries for one in with_base)
        # not counted of quantised tensors
        quantised = any(one.unchanged is None and one.update is not None for one in known)
        if of and not quantised and not found.unread:
            figures["unchanged_share"] = sum(one.unchanged or 0 for one in with_base) / of
            expected = sum(one.unchanged_expected or 0 for one in with_base)
            figures["unchanged_expected"] = expected / of
    return figures


def _said(figures: dict[str, Figure]) -> list[str]:
    """How far the copy is from the full model, and what it keeps of the update."""
    texts = []
    if "update_kept" in figures:
        texts.append(f"it keeps {share(max(0.0, figures['update_kept']))} of the update's energy")
    elif "relative_error" in figures:
        texts.append(f"error {share(figures['relative_error'])} of the norm of all tensors")
    return texts


def _beyond(found: Copy, off: Sequence[Copied]) -> str:
    entries = sum(one.off for one in off)
    return (
        f"{some_tensors(off, found.tensors)} {are(len(off))} not the full model's rounded to"
        f" {_format(off)}, in {counted(entries, 'entry', 'entries')}"
    )


def _off(one: Copied) -> str:
    text = f"{one.off:,} of {one.entries:,} entries are not those of rounding to {one.grid}"
    return text if one.finite else f"{text}; some are not finite"


def _relative(one: Copied) -> float | None:
    return math.sqrt(one.error / one.full) if one.finite and one.full else None


def _by_module(tensors: Sequence[Copied]) -> list[tuple[str, float, float]]:
    """(module, kept share, error over update), the one that kept least first."""
    modules: dict[str, list[Copied]] = {}
    for one in tensors:
        modules.setdefault(one.module, []).append(one)
    found = []
    for name, of_module in modules.items():
        share_kept, error = kept(of_module), error_over_update(of_module)
        if share_kept is not None and error is not None:
            found.append((name, share_kept, error))
    return sorted(found, key=lambda item: (item[1], item[0]))


def _lost(tensors: Sequence[Copied]) -> list[Against]:
    """The modules that kept too little of the update."""
    return [
        Against(name, f"{share(max(0.0, some))} of the update's energy is kept", error)
        for name, some, error in _by_module(tensors)
        if some < KEPT
    ]


def _notes(found: Copy, figures: dict[str, Figure]) -> list[str]:
    notes = []
    if unknown := [one for one in found.tensors if not one.finite]:
        tensors = counted(len(unknown), "tensor has", "tensors have")
        notes.append(f"{tensors} entries that are not finite; no norm counts them")
    if "unchanged_share" in figures:
        measured, expected = figures["unchanged_share"], figures["unchanged_expected"]
        notes.append(
            f"{share(measured)} of the entries are the base's; rounding the full model leaves"
            f" {share(expected)}"
        )
    lost = [one for one in _by_module(found.tensors) if one[1] < ALL] if found.has_base else []
    if lost:
        named = ", ".join(f"{name} {share(max(0.0, some))}" for name, some, _ in lost[:MODULES])
        notes.append(f"least of the update's energy is kept in {named}")
    return notes


def _format(tensors: Sequence[Copied]) -> str:
    return " and ".join(sorted({one.grid for one in tensors}))
