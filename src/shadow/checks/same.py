"""`same A B`: whether two checkpoints hold equal tensors, whatever names, files and dtypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shadow.checks.answer import Answer, Claim, Figure
from shadow.checks.verification import Against, largest_first
from shadow.quantities import share, text_of
from shadow.run.scanned import (
    Apart,
    Scanned,
    all_tensors,
    apart_in_words,
    are,
    not_compared,
    relative_norm,
    some_tensors,
)
from shadow.text import counted, several

SAME = Claim(
    "same",
    "the same model",
    "every tensor of either checkpoint has an equal one in the other, whatever names, shards,"
    " order, packing and dtypes; a cast that is exact in every entry changes nothing",
)


@dataclass(frozen=True)
class Compared:
    """What a scan found of two checkpoints, called A and B."""

    rows: Sequence[Scanned]
    lone: Sequence[Apart]
    """Tensors that only one of them has."""
    unread: Sequence[Apart]
    """Tensors whose values are not known."""
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By module, what two adapters multiply their updates by, where that differs."""
    dora: str = ""
    """Which of two adapters is the only one that gives rows their norms, A or B."""
    reshaped: Sequence[str] = ()
    """The shapes of each vector that both store in another shape."""


def same(found: Compared) -> tuple[Answer, tuple[Against, ...]]:
    """The answer, and the tensors that differ."""
    differ = [row for row in found.rows if row.changed]
    figures: dict[str, Figure] = {
        "tensors": len(found.rows),
        "tensors_differ": len(differ),
        "tensors_only_in_a": sum(one.side == "base" and not one.is_shared for one in found.lone),
        "tensors_only_in_b": sum(one.side == "tuned" and not one.is_shared for one in found.lone),
        "tensors_not_read": len(found.unread),
        "entries": sum(row.entries for row in found.rows),
        "entries_differ": sum(row.changed for row in differ),
    }
    # of what is compared byte by byte, or is not finite, no norm is known
    is_known = all(row.finite and (row.delta_energy or not row.changed) for row in found.rows)
    far = relative_norm(found.rows) if is_known else None
    if differ and far is not None:
        figures["relative_norm"] = far
    against = [Against(one.tensor, one.what) for one in found.lone]
    against += [
        Against(module, f"its update is scaled by {_number(one)} in A, {_number(other)} in B")
        for module, (one, other) in found.scales.items()
    ]
    if found.dora:
        against.append(Against("adapter_config.json", f"use_dora only in {found.dora}"))
    against += [Against(row.tuned, _difference(row), row.relative) for row in differ]
    if differ or found.lone or found.scales or found.dora:
        reason = "; ".join(_differences(found, differ, far))
        return Answer("same", "does_not_hold", reason, figures), largest_first(against)
    if found.unread:
        equal = [f"{_equal(found.rows)}, but"] if found.rows else []
        reason = " ".join([*equal, not_compared(found.unread)])
        unread = largest_first([Against(one.tensor, one.what) for one in found.unread])
        return Answer("same", "cannot_be_told", reason, figures), unread
    if not found.rows:
        return Answer("same", "cannot_be_told", "there is nothing to compare", figures), ()
    reason = f"{_equal(found.rows)}{_casts(found.rows)}{_shapes(found.reshaped)}"
    return Answer("same", "holds", reason, figures), ()


def _equal(rows: Sequence[Scanned]) -> str:
    return f"{all_tensors(len(rows))} {are(len(rows))} equal"


def _casts(rows: Sequence[Scanned]) -> str:
    """`, after a cast BF16 -> F32 that is exact in every entry`; empty where dtypes are equal."""
    casts = {row.formats: None for row in rows if row.formats[0] != row.formats[1]}
    if not casts:
        return ""
    named = several([f"{old} -> {new}" for old, new in sorted(casts)], 3)
    return f", after a cast {named} that is exact in every entry"


def _shapes(reshaped: Sequence[str]) -> str:
    """`, but 2 vectors have another shape: 4 in A, 1 x 4 in B`, which a loader may refuse."""
    if not reshaped:
        return ""
    some = several([*dict.fromkeys(reshaped)], 3)
    return f", but {counted(len(reshaped), 'vector has', 'vectors have')} another shape: {some}"


def _differences(found: Compared, differ: Sequence[Scanned], far: float | None) -> list[str]:
    """What is wrong, the most telling first."""
    texts = []
    if differ:
        texts.append(_rounded(found.rows, differ, far) or _values(found.rows, differ, far))
    elif found.rows:
        count = len(found.rows)
        texts.append(f"{all_tensors(count)} that both have {are(count)} equal")
    if found.scales:
        updates = counted(len(found.scales), "update", "updates")
        texts.append(f"the adapters scale {updates} differently")
    if found.dora:
        texts.append(f"only {found.dora} is a DoRA adapter")
    for side, name in (("base", "A"), ("tuned", "B")):
        lone = [one for one in found.lone if one.side == side]
        texts += apart_in_words(lone, f"only in {name}")
    if found.unread:
        texts.append(not_compared(found.unread))
    return texts


def _rounded(rows: Sequence[Scanned], differ: Sequence[Scanned], far: float | None) -> str | None:
    """`B is A rounded to BF16`, where every tensor that differs is; otherwise None."""
    casts = {row.rounded for row in differ}
    cast = casts.pop() if len(casts) == 1 else None
    if cast is None:
        return None
    side, name = cast
    which = "B is A" if side == "tuned" else "A is B"
    size = "" if far is None else f", the error is {share(far)} of the norm of all tensors"
    return f"{which} rounded to {name}: {some_tensors(differ, rows)} differ{size}"


def _values(rows: Sequence[Scanned], differ: Sequence[Scanned], far: float | None) -> str:
    entries = sum(row.changed for row in differ)
    where = f"in {counted(entries, 'entry', 'entries')}"
    size = "" if far is None else f", by {share(far)} of the norm of all tensors"
    verb = "differs" if len(differ) == 1 else "differ"
    return f"{some_tensors(differ, rows)} {verb}, {where}{size}"


def _number(scale: float) -> str:
    return text_of(scale, "number")


def _difference(row: Scanned) -> str:
    text = f"{row.changed:,} of {row.entries:,} entries differ"
    if row.rounded is not None:
        side, name = row.rounded
        text += f": {'B is A' if side == 'tuned' else 'A is B'} rounded to {name}"
    elif not row.finite:
        text += "; some are not finite"
    return f"{text}; {row.remark}" if row.remark else text
