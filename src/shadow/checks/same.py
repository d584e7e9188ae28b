"""`same A B`: whether two checkpoints hold equal tensors, whatever names, files and dtypes."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shadow.checks.answer import Against, Answer, Check, Evidence, Figure, Outcome
from shadow.checks.whole.gguf_metadata import WORDS as ROTARY
from shadow.checks.whole.gguf_metadata import rotary_faults
from shadow.dtypes import FLOATS
from shadow.errors import UsageError
from shadow.run.scanned import Scanned, Unmatched, not_compared, relative_norm, unmatched_reasons
from shadow.templates import Reason
from shadow.text import shape_text

if TYPE_CHECKING:
    from shadow.checkpoints.opening import AnyCheckpoint, Checkpoint, Located
    from shadow.checkpoints.pairing import MatrixPair
    from shadow.checks.answer import Question
    from shadow.run.runtime import AlignedPair, Gathering, Runtime

SAME_NORM = 1e-6  # how far energies of the same entries may be apart, as they are summed
MOST_ALIKE = 4  # other tensors of that norm that are read for each
NONE = (  # figures that are 0 of equal files
    *("tensors_differ", "tensors_only_in_a", "tensors_only_in_b", "tensors_not_read"),
    "entries_differ",
)
RELATIONS = {  # of two tensors, by the codes of relations/exact.py, and where another is equal
    "is_rounded": "{which} rounded to {format}",
    "is_multiple": "{which} times {number:factor}",
    "is_shifted": "{which} with {number:gain} added to every entry",
    "is_transposed": "B is A transposed",
    "rows_reordered": "B has the rows of A in another order[: {order}]",
    "columns_reordered": "B has the {rows|entries|columns} of A in another order[: {order}]",
    "is_cut": "{which} cut to {format} instead of rounded",
    "is_flushed": "{which} with 0 for the subnormal numbers of {format}",
    "upper_bits_equal": "A and B are the same once both are cut to BF16",
    "elsewhere": "A has these values in {where}",
}
ORDERS = {
    "halves": "the two halves are exchanged",
    "interleaved": "the halves of every {size:count} of them are interleaved in {where}, as Meta's"
    " files store q and k",
    "grouped": "blocks of {size:count} from three thirds lie together in {where}, as q, k and v of"
    " a head do",
    "blocks": "in blocks of {size:count}",
}
WORDS = {
    **ORDERS,
    **{code: f"{text}[; {{remark}}]" for code, text in RELATIONS.items()},
    "related_so": "{name}: {relation}[, and {others:count more|more} {others|is|are} so related]",
    "one_shard": "all that differ are in {shard} of B",
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
    "with_one": "{tensors:count norm is|norms are} equal with the 1 that a GGUF file adds: the sum"
    " is rounded there, and in the model's own class",
    "scales": "the adapters scale {updates:count update|updates} differently",
    "dora": "only {where} is a DoRA adapter",
    "scale": "its update is scaled by {a:number} in A, {b:number} in B",
    **ROTARY,
    "use_dora": "use_dora only in {where}",
    "entries": "{changed/entries:all entry|entries} {changed|differs|differ}[; {remark}]",
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
    shard: str = ""  # the only one of B's files that has tensors that differ
    unscanned: Literal["", "one_checkpoint", "equal_checksums", "equal_files"] = ""
    """Why no weights were decoded."""
    stored: Sequence[int] = ()  # of equal files: the entries of each tensor


def judge(evidence: Compared) -> Answer:
    """Judge by values; what cannot be read leaves the answer open unless something differs."""
    if evidence.unscanned:
        tensors = len(evidence.stored)
        reason = Reason(evidence.unscanned, tensors=tensors, names=["A", "B"])
        if evidence.unscanned == "one_checkpoint":
            return Answer(Outcome.INCONCLUSIVE, [reason])
        figures: dict[str, Figure] = {}
        if evidence.stored:
            figures = {"tensors": tensors, "entries": sum(evidence.stored)}
            figures |= dict.fromkeys(NONE, 0)
        return Answer(Outcome.HOLDS, [reason], figures)
    rows = evidence.rows
    differ = [row for row in rows if row.changed]
    only_in = Counter(tensor.side for tensor in evidence.unmatched if not tensor.is_shared)
    figures = {
        "tensors": len(rows),
        "tensors_differ": len(differ),
        "tensors_only_in_a": only_in["base"],
        "tensors_only_in_b": only_in["tuned"],
        "tensors_not_read": len(evidence.unread),
        "entries": sum(row.entries for row in rows),
        "entries_differ": sum(row.changed for row in differ),
    }
    # of what is compared byte by byte, or is not finite, no norm is known
    is_known = all(row.finite and (row.delta_energy or not row.changed) for row in rows)
    far = relative_norm(rows) if is_known else None
    if differ and far is not None:
        figures["relative_norm"] = far
    doubts = not_compared(evidence.unread)
    if doubts and rows:
        doubts = [Reason("equal_but", tensors=len(rows), rest=doubts[0])]
    elif not rows:
        doubts = doubts or [Reason("nothing")]
    casts = {row.formats for row in rows if row.formats[0] != row.formats[1]}
    equal = Reason(
        "equal",
        tensors=len(rows),
        casts=[f"{old} -> {new}" for old, new in sorted(casts)] or None,
        reshaped=len(evidence.reshaped),
        shapes=[*dict.fromkeys(evidence.reshaped)] or None,
    )
    is_other = differ or evidence.unmatched or evidence.scales or evidence.dora or evidence.rotary
    return evidence.judged(
        figures,
        faults=_differences(evidence, differ, far) if is_other else [],
        doubts=doubts,
        holds=[equal],
        against=_against(evidence, differ),
    )


def _against(evidence: Compared, differ: Sequence[Scanned]) -> list[Against]:
    against = []
    for module, (scale, other) in evidence.scales.items():
        against.append(Against(module, Reason("scale", a=scale, b=other)))
    if evidence.dora:
        why = Reason("use_dora", where=evidence.dora)
        against.append(Against("adapter_config.json", why))
    against += evidence.rotary
    for row in differ:
        why = row.relation or Reason("entries" if row.finite else "some_not_finite")
        figures = {"changed": row.changed, "entries": row.entries, "remark": row.remark or None}
        against.append(Against(row.tuned, Reason(why.code, why.figures, **figures), row.relative))
    return against


def _cast(rounded: tuple[str, str]) -> dict[str, str]:
    """`B is A`, and the format that it is rounded to."""
    side, stored = rounded
    return {"which": "B is A" if side == "tuned" else "A is B", "format": stored}


def _differences(evidence: Compared, differ: Sequence[Scanned], far: float | None) -> list[Reason]:
    """Say what is wrong, beginning with what explains most."""
    reasons = []
    of = {"tensors": len(evidence.rows), "differ": len(differ), "far": far}
    casts = {row.rounded for row in differ}
    cast = casts.pop() if len(casts) == 1 else None
    if cast is not None:
        reasons.append(Reason("rounded", of, **_cast(cast)))
    elif differ:
        entries = sum(row.changed for row in differ)
        reasons.append(Reason("differ", of, entries=entries))
        related = [row for row in differ if row.relation]
        for row in related[:1]:
            more = len(related) - 1 or None
            reasons.append(Reason("related_so", name=row.tuned, relation=row.relation, others=more))
    elif evidence.rows:
        reasons.append(Reason("others_equal", of))
    if evidence.shard:
        reasons.append(Reason("one_shard", shard=evidence.shard))
    if evidence.scales:
        reasons.append(Reason("scales", updates=len(evidence.scales)))
    if evidence.dora:
        reasons.append(Reason("dora", where=evidence.dora))
    reasons += [fault.why for fault in evidence.rotary]
    for side, name in (("base", "A"), ("tuned", "B")):
        unmatched = [tensor for tensor in evidence.unmatched if tensor.side == side]
        reasons += unmatched_reasons(unmatched, Reason("only_in", where=name))
    return reasons + not_compared(evidence.unread)


def gather(question: Question, runtime: Runtime, scratch: Path) -> Gathering[Compared]:
    """Compare two checkpoints tensor by tensor; reads no weights if their files are equal."""
    from shadow.run.sides import find_checkpoints, open_checkpoint

    sides = find_checkpoints(question.named, runtime, scratch)
    states = {(side.reference, side.commit) for side in sides.values()}
    if len(states) == 1 and all(commit for _, commit in states):  # org/x and org/x@main
        return Compared(unscanned="one_checkpoint")
    if _have_equal_checksums(*sides.values()):
        return Compared(unscanned="equal_checksums")
    first, second = (open_checkpoint(side, runtime, scratch / name) for name, side in sides.items())
    if (first.adapter is None) != (second.adapter is None):
        adapter, model = (first, second) if first.adapter else (second, first)
        fault = f"{adapter.reference} is an adapter, and {model.reference} is a model"
        raise UsageError(fault, "`shadow verify merged BASE ADAPTER MERGED` checks a merge")
    if _have_equal_files(first, second):
        stored = [info.parameters for info in first.tensors.values()]
        return Compared(unscanned="equal_files", stored=stored)
    from shadow.run.aligned import align_all
    from shadow.run.scan import scan

    aligned = align_all(first, second, ("A", "B"))
    compared = yield from scan(
        aligned.pair,
        lambda pair, a, b: (pair, _row(pair, a, b)),
        runtime,
        scratch / "scan",
        aligned.unread,
    )
    sources = (*first.sources.values(), *second.sources.values())
    is_local = all(source.is_local for source in sources)
    unmatched = aligned.unmatched
    if is_local:
        compared = _found_elsewhere(compared, aligned.pair)
        unmatched = [_turned(tensor, aligned.pair) for tensor in unmatched]
    notes = [*aligned.notes]
    equal = {
        pair.key
        for pair, row in compared
        if row.changed and is_local and _is_equal_with_one(pair, aligned.pair)
    }
    if equal:
        notes.append(Reason("with_one", {"tensors": len(equal)}))
        compared = [
            (pair, replace(row, changed=0, delta_energy=0.0) if pair.key in equal else row)
            for pair, row in compared
        ]
    shards = {pair.tuned.info.shard for pair, row in compared if row.changed}
    rotary: list[Against] = []
    header = first.gguf or second.gguf
    if header and (first.gguf is None or second.gguf is None):
        rotary = rotary_faults(header, (second if first.gguf else first).config)
    with_norms = ""
    for name, checkpoint in (("A", first), ("B", second)):
        if checkpoint.adapter and checkpoint.adapter.dora:
            with_norms += name
    if with_norms == "AB":
        with_norms = ""
    only_shard = ""
    if len(shards) == 1 < len(second.sources):
        (only_shard,) = shards
    reshaped = [_reshaped(pair) for pair, _ in compared]
    return Compared(
        [row for _, row in compared],
        _scales(first, second),
        with_norms,
        rotary,
        [*filter(None, reshaped)],
        only_shard,
        unmatched=unmatched,
        unread=aligned.unread,
        notes=notes,
    )


def _is_equal_with_one(pair: MatrixPair, aligned: AlignedPair) -> bool:
    """True if a norm of a GGUF file, which stores 1 + weight in F32, is that of the other
    side plus 1: classes such as Gemma's multiply by this sum, which rounds alike.
    """
    from shadow.run.scan import sides_of

    packings = [side.info.packing for side in (pair.base, pair.tuned) if side is not None]
    if not any(packing and packing.kind == "gguf" and packing.facts[1] for packing in packings):
        return False
    sides = sides_of(pair, aligned.base, aligned.tuned)
    return bool((sides.base[()].float() + 1 == sides.tuned[()].float() + 1).all())


def _reshaped(pair: MatrixPair) -> str:
    """The shapes of a vector if both sides store it in different ones."""
    assert pair.base is not None, "lined up"
    first = pair.base.stored_shape
    second = pair.tuned.stored_shape
    if pair.is_matrix or first == second or math.prod(first) != math.prod(second):
        return ""
    return f"{shape_text(first)} in A, {shape_text(second)} in B"


def _have_equal_checksums(first: AnyCheckpoint, second: AnyCheckpoint) -> bool:
    """True if the files of both, decoded alike, have equal checksums on the Hub."""
    from shadow.checkpoints.opening import Located

    if not (isinstance(first, Located) and isinstance(second, Located)):
        return False
    digests = []
    for side in (first, second):
        files = side.listing.files
        digests.append(sorted(files[shard].checksum or "" for shard in side.weights.shards))
    is_equal = digests[0] == digests[1] and all(digests[0])
    is_equal &= first.weights.adapter == second.weights.adapter
    return is_equal and _are_decoded_alike(first, second)


def _have_equal_files(first: Checkpoint, second: Checkpoint) -> bool:
    """True if the files of two folders, decoded alike, hold equal bytes."""
    if len(first.sources) != len(second.sources) or first.adapter != second.adapter:
        return False
    if not _are_decoded_alike(first, second):
        return False
    for name, other in zip(sorted(first.sources), sorted(second.sources), strict=True):
        file = getattr(first.sources[name], "held", None)
        other_file = getattr(second.sources[other], "held", None)
        if not (file and other_file and file.equals(other_file)):
            return False
    return True


def _are_decoded_alike(first: Located | Checkpoint, second: Located | Checkpoint) -> bool:
    """True if equal bytes mean equal numbers: the packing agrees, and so do the heads that put rows
    of q and k in order.
    """
    from shadow.checkpoints.formats import settings_in
    from shadow.checkpoints.opening import Located

    def decoding(side: Located | Checkpoint) -> list[object]:
        settings: list[object] = [*settings_in(side.config)]
        if isinstance(side, Located):  # no header is read yet
            heads = [side.config.get(f"num_{kind}_heads") for kind in ("attention", "key_value")]
            return [settings, heads]
        infos = side.tensors.items()
        return [settings, [(name, info.packing.facts) for name, info in infos if info.packing]]

    return decoding(first) == decoding(second)


def _scales(first: Checkpoint, second: Checkpoint) -> dict[str, tuple[float, float]]:
    """The scales of two adapters by module, where they differ."""
    scales = _scales_of(first)
    other_scales = _scales_of(second)
    differing = {}
    for module, scale in scales.items():
        other = other_scales.get(module, scale)
        if not math.isclose(scale, other):
            differing[module] = (scale, other)
    return differing


def _scales_of(checkpoint: Checkpoint) -> dict[str, float]:
    """The factor of each update of an adapter; empty of a model."""
    from shadow.checkpoints.weight_files import adapter_factors

    adapter = checkpoint.adapter
    if adapter is None:
        return {}
    scales = {}
    for module, (_, right, transposed) in adapter_factors(checkpoint.tensors)[0].items():
        scales[module] = adapter.scaling(module, right.shape[1 if transposed else 0])
    return scales


def _row(pair: MatrixPair, base: Checkpoint, tuned: Checkpoint) -> Scanned:
    """Compare the tensors of a pair; those that differ are read again for a relation."""
    from shadow.relations.exact import Differing, relation_of
    from shadow.run.aligned import row_of
    from shadow.run.scan import is_raw, sides_of
    from shadow.spectra.lazy import is_quantised

    row = row_of(pair, base, tuned)
    if row.rounded:
        return replace(row, relation=Reason("is_rounded", _cast(row.rounded)))
    if not (row.changed and row.finite) or is_raw(pair):
        return row
    sides = sides_of(pair, base, tuned)
    if is_quantised(sides.base) or is_quantised(sides.tuned):
        return row
    is_other = not math.isclose(row.base_energy, row.tuned_energy, rel_tol=SAME_NORM)
    whole = None if is_other else sides
    first, second = (
        operand and replace(operand, part=replace(operand.part, rows=None, groups=1))
        for operand in (pair.base, pair.tuned)
    )
    is_fused = pair.is_matrix and first != pair.base and second != pair.tuned
    if first and second and is_fused and first.shape == second.shape:
        fused = replace(pair, base=first, tuned=second, rows=second.shape[0])
        whole = sides_of(fused, base, tuned)
    return replace(row, relation=relation_of(Differing(sides, row.formats, whole)))


def _found_elsewhere(
    rows: Sequence[tuple[MatrixPair, Scanned]], aligned: AlignedPair
) -> list[tuple[MatrixPair, Scanned]]:
    """Find the tensors of A that tensors of B hold in another place. Those of equal norms are read
    again.
    """
    from shadow.run.scan import sides_of
    from shadow.spectra.entries import compared, mark

    by_norm: defaultdict[object, list[tuple[MatrixPair, Scanned]]] = defaultdict(list)
    for pair, row in rows:
        if row.base_energy not in (0, row.entries):  # norms of ones are equal by design
            by_norm[_norm(pair, row.base_energy)].append((pair, row))
    related = []
    for pair, row in rows:
        alike = by_norm[_norm(pair, row.tuned_energy)][:MOST_ALIKE]
        if not (row.changed and row.finite) or row.relation:
            alike = []
        for other, its in alike:
            sides = sides_of(pair, aligned.base, aligned.tuned)
            base = sides_of(other, aligned.base, aligned.tuned).base
            if base.shape != sides.tuned.shape or mark(base) != mark(sides.tuned):
                continue
            if not compared(replace(sides, base=base), row.formats).changed:
                where = its.place if its.base == row.base else its.base
                row = replace(row, relation=Reason("elsewhere", where=where))
                break
        related.append((pair, row))
    return related


def _turned(tensor: Unmatched, aligned: AlignedPair) -> Unmatched:
    """Say of a tensor with another shape that it is A's transposed, where it is."""
    from shadow.relations.exact import Differing, is_transposed
    from shadow.run.workers import own_workspace
    from shadow.spectra.spectrum import Sides, working_dtype

    first = aligned.base.tensors.get(tensor.tensor)
    second = aligned.tuned.tensors.get(tensor.tensor)
    if first is None or second is None or first.problem or second.problem:
        return tensor
    if len(first.shape) != 2 or first.shape != second.shape[::-1]:
        return tensor
    formats = first.dtype, second.dtype
    if not FLOATS.keys() >= {*formats}:
        return tensor
    sides = Sides(
        aligned.base.tensor(first),
        aligned.tuned.tensor(second),
        working_dtype(*formats),
        own_workspace(),
    )
    figures = is_transposed(Differing(sides, formats, sides))
    if figures is None:
        return tensor
    return replace(tensor, why=Reason("is_transposed", figures))


def _norm(pair: MatrixPair, energy: float) -> tuple[object, ...]:
    """A key that tensors of equal values share."""
    return *pair.tuned.shape, f"{energy:.6g}"


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
