"""`same A B`: whether two checkpoints hold equal tensors, whatever names, files and dtypes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shadow.checks.answer import Against, Answer, Check, Evidence, Figure, Outcome
from shadow.checks.whole.gguf_metadata import WORDS as ROTARY
from shadow.checks.whole.gguf_metadata import rotary_faults
from shadow.errors import UsageError
from shadow.run.scanned import Scanned, not_compared, relative_norm, unmatched_reasons
from shadow.templates import Reason

if TYPE_CHECKING:
    from shadow.checkpoints.opening import Checkpoint, Found, Located
    from shadow.checkpoints.pairing import MatrixPair
    from shadow.checks.answer import Question
    from shadow.run.runtime import AlignedPair, Runtime

FAR = 0.5  # |cosine| below which two tensors have little in common
MOST_FAR = 64  # such tensors, of which another place is looked for
NONE = (  # figures that are 0 of equal files
    *("tensors_differ", "tensors_only_in_a", "tensors_only_in_b", "tensors_not_read"),
    "entries_differ",
)
WORDS = {
    "equal_checksums": "the weight files have equal checksums",
    "equal_files": "{tensors:all tensor|tensors} {tensors|is|are} equal, byte for byte",
    "nothing": "there is nothing to compare",
    "equal": "{tensors:all tensor|tensors} {tensors|is|are} equal"
    "[, after a cast {casts} that is exact in every entry]"
    "[, but {reshaped:count vector has|vectors have} another shape: {shapes}]",
    "equal_but": "{tensors:all tensor|tensors} {tensors|is|are} equal, but {rest}",
    "others_equal": "{tensors:all tensor|tensors} that both have {tensors|is|are} equal",
    "rounded": "{which} rounded to {format}: {differ:count} of {tensors:count tensor|tensors}"
    " differ[, the error is {far:share} of the norm of all tensors]",
    "differ": "{differ:count} of {tensors:count tensor|tensors} {differ|differs|differ}, in"
    " {entries:count entry|entries}[, by {far:share} of the norm of all tensors]",
    "scales": "the adapters scale {updates:count update|updates} differently",
    "dora": "only {where} is a DoRA adapter",
    "scale": "its update is scaled by {a:number} in A, {b:number} in B",
    **ROTARY,
    "use_dora": "use_dora only in {where}",
    "entries": "{changed/entries:all entry|entries} {changed|differs|differ}"
    "[: {which} rounded to {format}][; {remark}]",
    "some_not_finite": "{changed/entries:all entry|entries} {changed|differs|differ}; some are not"
    " finite"
    "[; {remark}]",
}


@dataclass(frozen=True)
class Compared(Evidence):
    """The comparison of two checkpoints, called A and B."""

    rows: Sequence[Scanned] = ()
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By module, what two adapters multiply their updates by, where that differs."""
    dora: str = ""  # which of two adapters is the only one that gives rows their norms, A or B
    rotary: Sequence[Against] = ()  # faults of a GGUF file beside its source
    reshaped: Sequence[str] = ()  # the shapes of each vector that both store in another shape
    unscanned: Literal["", "one_checkpoint", "equal_checksums", "equal_files"] = ""
    """Why no weights were decoded."""
    stored: Sequence[int] = ()  # of equal files: the entries of each tensor


def judge(found: Compared) -> Answer:
    """Judge by values; what cannot be read leaves the answer open unless something differs."""
    if found.unscanned:
        reason = Reason(found.unscanned, {"tensors": len(found.stored), "names": ["A", "B"]})
        if found.unscanned == "one_checkpoint":
            return Answer(Outcome.INCONCLUSIVE, [reason])
        figures: dict[str, Figure] = {}
        if found.stored:
            figures = {"tensors": len(found.stored), "entries": sum(found.stored)}
            figures |= dict.fromkeys(NONE, 0)
        return Answer(Outcome.HOLDS, [reason], figures)
    differ = [row for row in found.rows if row.changed]
    figures = {
        "tensors": len(found.rows),
        "tensors_differ": len(differ),
        "tensors_only_in_a": sum(
            one.side == "base" and not one.is_shared for one in found.unmatched
        ),
        "tensors_only_in_b": sum(
            one.side == "tuned" and not one.is_shared for one in found.unmatched
        ),
        "tensors_not_read": len(found.unread),
        "entries": sum(row.entries for row in found.rows),
        "entries_differ": sum(row.changed for row in differ),
    }
    # of what is compared byte by byte, or is not finite, no norm is known
    is_known = all(row.finite and (row.delta_energy or not row.changed) for row in found.rows)
    far = relative_norm(found.rows) if is_known else None
    if differ and far is not None:
        figures["relative_norm"] = far
    count, doubts = {"tensors": len(found.rows)}, list[Reason]()
    if found.unread:
        rest = not_compared(found.unread)
        doubts = [Reason("equal_but", {**count, "rest": rest}) if found.rows else rest]
    elif not found.rows:
        doubts = [Reason("nothing")]
    casts = {row.formats for row in found.rows if row.formats[0] != row.formats[1]}
    of_all = {
        "casts": [f"{old} -> {new}" for old, new in sorted(casts)] or None,
        "reshaped": len(found.reshaped),
        "shapes": [*dict.fromkeys(found.reshaped)] or None,
    }
    is_other = differ or found.unmatched or found.scales or found.dora or found.rotary
    return found.judged(
        figures,
        faults=_differences(found, differ, far) if is_other else [],
        doubts=doubts,
        holds=[Reason("equal", {**count, **of_all})],
        against=_against(found, differ),
    )


def _against(found: Compared, differ: Sequence[Scanned]) -> list[Against]:
    against = [
        Against(module, Reason("scale", {"a": one, "b": other}))
        for module, (one, other) in found.scales.items()
    ]
    if found.dora:
        against.append(Against("adapter_config.json", Reason("use_dora", {"where": found.dora})))
    against += found.rotary
    is_one_cast = len({row.rounded for row in differ}) == 1  # which the reason says of all
    for row in differ:
        which, stored = _cast(row.rounded) if row.rounded and not is_one_cast else (None, None)
        of = {"changed": row.changed, "entries": row.entries, "remark": row.remark or None}
        code = "entries" if row.finite or row.rounded else "some_not_finite"
        why = Reason(code, {**of, "which": which, "format": stored})
        against.append(Against(row.tuned, why, row.relative))
    return against


def _cast(rounded: tuple[str, str]) -> tuple[str, str]:
    """Return `B is A`, and the format that it is rounded to."""
    side, stored = rounded
    return "B is A" if side == "tuned" else "A is B", stored


def _differences(found: Compared, differ: Sequence[Scanned], far: float | None) -> list[Reason]:
    """Return what is wrong, beginning with what explains most."""
    reasons = []
    of = {"tensors": len(found.rows), "differ": len(differ), "far": far}
    casts = {row.rounded for row in differ}
    cast = casts.pop() if len(casts) == 1 else None
    if cast is not None:
        which, stored = _cast(cast)
        reasons.append(Reason("rounded", {**of, "which": which, "format": stored}))
    elif differ:
        entries = sum(row.changed for row in differ)
        reasons.append(Reason("differ", {**of, "entries": entries}))
    elif found.rows:
        reasons.append(Reason("others_equal", of))
    if found.scales:
        reasons.append(Reason("scales", {"updates": len(found.scales)}))
    if found.dora:
        reasons.append(Reason("dora", {"where": found.dora}))
    reasons += [fault.why for fault in found.rotary]
    for side, name in (("base", "A"), ("tuned", "B")):
        unmatched = [one for one in found.unmatched if one.side == side]
        reasons += unmatched_reasons(unmatched, Reason("only_in", {"where": name}))
    if found.unread:
        reasons.append(not_compared(found.unread))
    return reasons


def gather(asked: Question, runtime: Runtime, scratch: Path) -> Compared:
    """Compare two checkpoints tensor by tensor; reads no weights if their files are equal."""
    from shadow.run.sides import found_all, open_found

    found = found_all(asked.named, runtime, scratch)
    states = {(one.reference, one.commit) for one in found.values()}
    if len(states) == 1 and all(commit for _, commit in states):  # org/x and org/x@main
        return Compared(unscanned="one_checkpoint")
    if _have_equal_checksums(*found.values()):
        return Compared(unscanned="equal_checksums")
    first, second = (open_found(one, runtime, scratch / name) for name, one in found.items())
    if (first.adapter is None) != (second.adapter is None):
        adapter, model = (first, second) if first.adapter else (second, first)
        fault = f"{adapter.reference} is an adapter, and {model.reference} is a model"
        raise UsageError(fault, "`shadow verify merged BASE ADAPTER MERGED` checks a merge")
    if _have_equal_files(first, second):
        stored = [info.parameters for info in first.tensors.values()]
        return Compared(unscanned="equal_files", stored=stored)
    from shadow.run.aligned import align_all, row_of
    from shadow.run.scan import scan

    aligned = align_all(first, second, ("A", "B"))
    compared = scan(
        aligned.pair,
        lambda pair, a, b: (pair, row_of(pair, a, b)),
        runtime,
        scratch / "scan",
        aligned.unread,
    )
    sources = (*first.sources.values(), *second.sources.values())
    moved = _moved(compared, aligned.pair) if all(one.is_local for one in sources) else {}
    rotary: list[Against] = []
    header = first.gguf or second.gguf
    if header and (first.gguf is None or second.gguf is None):
        rotary = rotary_faults(header, (second if first.gguf else first).config)
        for pair, row in compared:
            if row.changed and math.isclose(row.delta_energy, row.entries, rel_tol=1e-3):
                moved[pair.key] = "1 is missing or added, as llama.cpp adds it to norms"
    with_norms = [name for name, one in zip("AB", (first, second), strict=True)
                  if one.adapter and one.adapter.dora]  # fmt: skip
    return Compared(
        [replace(row, remark=moved.get(pair.key, row.remark)) for pair, row in compared],
        _scales(first, second),
        with_norms[0] if len(with_norms) == 1 else "",
        rotary,
        [text for pair, _ in compared if (text := _reshaped(pair))],
        unmatched=aligned.unmatched,
        unread=aligned.unread,
        notes=aligned.notes,
    )


def _reshaped(pair: MatrixPair) -> str:
    """Return the shapes of a vector if both sides store it in different ones."""
    assert pair.base is not None, "lined up"
    shapes = pair.base.stored_shape, pair.tuned.stored_shape
    if pair.is_matrix or shapes[0] == shapes[1] or math.prod(shapes[0]) != math.prod(shapes[1]):
        return ""
    return "{} in A, {} in B".format(*(" x ".join(map(str, shape)) or "()" for shape in shapes))


def _have_equal_checksums(first: Found, second: Found) -> bool:
    """Return whether the files of both, decoded alike, have equal checksums on the Hub."""
    from shadow.checkpoints.opening import Located

    if not (isinstance(first, Located) and isinstance(second, Located)):
        return False
    digests = [
        sorted(one.snapshot.files[shard].checksum or "" for shard in one.weights.shards)
        for one in (first, second)
    ]
    is_equal = digests[0] == digests[1] and all(digests[0])
    adapters = first.weights.adapter, second.weights.adapter
    return is_equal and adapters[0] == adapters[1] and _are_decoded_alike(first, second)


def _have_equal_files(first: Checkpoint, second: Checkpoint) -> bool:
    """Return whether the files of two folders, decoded alike, hold equal bytes."""
    files = [[one.sources[name] for name in sorted(one.sources)] for one in (first, second)]
    if len(files[0]) != len(files[1]) or first.adapter != second.adapter:
        return False
    held = [[getattr(source, "held", None) for source in side] for side in files]
    return _are_decoded_alike(first, second) and all(
        a and b and a.equals(b) for a, b in zip(*held, strict=True)
    )


def _are_decoded_alike(first: Located | Checkpoint, second: Located | Checkpoint) -> bool:
    """Return whether equal bytes mean equal numbers: the packing agrees, and so do the heads that
    put rows of q and k in order.
    """
    from shadow.checkpoints.formats import settings_in
    from shadow.checkpoints.opening import Located

    def decoding(one: Located | Checkpoint) -> object:
        if isinstance(one, Located):  # no header is read yet
            return [one.config.get(f"num_{kind}_heads") for kind in ("attention", "key_value")]
        return [(name, info.packing.facts) for name, info in one.tensors.items() if info.packing]

    settings = [list(settings_in(one.config)) for one in (first, second)]
    return settings[0] == settings[1] and decoding(first) == decoding(second)


def _scales(first: Checkpoint, second: Checkpoint) -> dict[str, tuple[float, float]]:
    """Return the scales of two adapters by module, where they differ."""
    from shadow.checkpoints.weight_files import adapter_factors

    if first.adapter is None or second.adapter is None:
        return {}
    one, other = (
        {
            module: adapter.scaling(module, right.shape[1 if transposed else 0])
            for module, (_, right, transposed) in adapter_factors(tensors)[0].items()
        }
        for adapter, tensors in ((first.adapter, first.tensors), (second.adapter, second.tensors))
    )
    return {
        module: (one[module], other[module])
        for module in one
        if module in other and not math.isclose(one[module], other[module])
    }


def _moved(rows: Sequence[tuple[MatrixPair, Scanned]], aligned: AlignedPair) -> dict[str, str]:
    """Return, by the key of pairs whose tensors have little in common, which tensor of A the tensor
    of B holds instead, if that can be found. Reads these tensors again.
    """
    from shadow.run.scan import sides_of
    from shadow.spectra.entries import compared, mark

    far = [
        (pair, row)
        for pair, row in rows
        if row.changed and row.finite and pair.is_matrix and row.rounded is None
        if row.inner**2 < FAR**2 * row.base_energy * row.tuned_energy
    ][:MOST_FAR]
    shapes = {pair.tuned.shape for pair, _ in far}
    equal = [one for one in rows if not one[1].changed and one[0].tuned.shape in shapes]
    marks: dict[tuple[object, ...], list[tuple[MatrixPair, str]]] = {}
    for pair, row in [*equal[:MOST_FAR], *far]:
        sides = sides_of(pair, aligned.base, aligned.tuned)
        marks.setdefault((*sides.shape, mark(sides.base)), []).append((pair, row.base))
    said = {}
    for pair, row in far:
        sides = sides_of(pair, aligned.base, aligned.tuned)
        for other, name in marks.get((*sides.shape, mark(sides.tuned)), ()):
            base = sides_of(other, aligned.base, aligned.tuned).base
            if not compared(replace(sides, base=base), row.formats).changed:
                said[pair.key] = f"A has these values in {name}"
                break
    return said


CHECK = Check(
    "same",
    "the same model",
    "every tensor of either checkpoint has an equal one in the other, whatever names, shards,"
    " order, packing and dtypes; a cast that is exact in every entry changes nothing",
    judge,
    WORDS,
    gather,
    checkpoints=("A", "B"),
    says="equal weights, whatever names and dtypes",
)
