"""What the claim `same` needs measured: every tensor of two checkpoints beside its partner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from shadow.audits.runtime import AlignedPair, Runtime
from shadow.audits.scan import in_words, scan, scanned, sides_of
from shadow.audits.sides import find_checkpoint, open_found
from shadow.checkpoints.opening import Checkpoint, Found, Located, sharing
from shadow.checkpoints.pairing import Filter, MatrixPair, Operand, Skipped, pair_checkpoints
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.sources import LocalFile
from shadow.claims.answer import Answer
from shadow.claims.verify.same import Compared, same
from shadow.claims.verify.scanned import Apart, Scanned
from shadow.claims.verify.verification import Verification
from shadow.errors import UsageError
from shadow.places.architecture import Part, Place
from shadow.spectra.entries import differing_bytes, mark
from shadow.spectra.reordering import FAR, reordered
from shadow.targets.references import Reference
from shadow.text import counted, short

# bytes that are compared as they are: any pattern of 8 bits is one of this format's values
RAW = "F8_E5M2"
BYTES = "compared byte by byte"
MOST_FAR = 64  # tensors that differ in all, of which another order or place is looked for


def verify_same(
    of: Mapping[str, str], references: Sequence[Reference], runtime: Runtime, scratch: Path
) -> Verification:
    """Whether two checkpoints hold equal tensors."""
    found = [
        find_checkpoint(reference, runtime, scratch / side)
        for side, reference in zip("ab", references, strict=True)
    ]
    if why := _same_files(*found):
        return Verification("same", of, Answer("same", "holds", why, {}))
    first, second = (
        open_found(one, runtime, scratch / side) for side, one in zip("ab", found, strict=True)
    )
    _require_alike(first, second)
    first, second = (_plain(checkpoint) for checkpoint in (first, second))
    renamed, prefix = _without_prefix(second, first)
    second = sharing(renamed, first)
    pairs, skipped = pair_checkpoints(first, second, Filter(), may_differ=True)
    lined, lone, unread = _lined_up(first, second, pairs, skipped)
    found_rows = list(
        scan(lined, lambda pair, a, b: (pair, _row(pair, a, b)), runtime, scratch / "scan")
    )
    found_rows.sort(key=lambda item: item[0].key)
    moved = _moved(found_rows, lined) if _is_local(lined) else {}
    rows = [replace(row, remark=moved.get(pair.key, row.remark)) for pair, row in found_rows]
    answer, against = same(Compared(rows, lone, unread))
    notes = []
    if prefix:
        notes.append(f"names in B begin with {short(prefix)} where those in A do not")
    names = sum(
        pair.base is not None and pair.base.info.name != pair.tuned.info.name
        for pair in lined.pairs
    )
    if names and not prefix:
        notes.append(f"{counted(names, 'tensor has', 'tensors have')} another name or packing in B")
    return Verification("same", of, answer, against, tuple(notes))


def _same_files(first: Found, second: Found) -> str | None:
    """Why no byte need be read: the files of both are the same; None where that is not known."""
    if isinstance(first, Located) and isinstance(second, Located):
        digests = [
            sorted(one.snapshot.files[shard].checksum or "" for shard in one.weights.shards)
            for one in (first, second)
        ]
        alike = digests[0] == digests[1] and all(digests[0])
        if alike and (first.weights.adapter is None) == (second.weights.adapter is None):
            return "the weight files have equal checksums"
    if isinstance(first, Checkpoint) and isinstance(second, Checkpoint):
        files = [
            {
                (source.held.standing[:2] if source.held else str(source.path))
                for source in one.sources.values()
                if isinstance(source, LocalFile)
            }
            for one in (first, second)
        ]
        if files[0] == files[1] and len(files[0]) == len(first.sources) == len(second.sources):
            return "the weight files are the same files"
    return None


def _require_alike(first: Checkpoint, second: Checkpoint) -> None:
    """Raises UsageError for an adapter beside a model."""
    if (first.adapter is None) != (second.adapter is None):
        adapter, model = (first, second) if first.adapter else (second, first)
        raise UsageError(
            f"{adapter.reference} is an adapter, and {model.reference} is a model",
            "`shadow verify merged BASE ADAPTER MERGED` checks a merge",
        )


def _plain(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint whose tensors are all compared, those that share their bytes included."""
    tensors = {name: replace(info, alias_of=None) for name, info in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=tensors, adapter=None)


def _without_prefix(checkpoint: Checkpoint, other: Checkpoint) -> tuple[Checkpoint, str]:
    """The checkpoint without what most of its names have before a name of the other's; and that.

    An exporter that wraps a model twice writes such names. Places are read from names, so that they
    would not be found.
    """
    names = checkpoint.tensors.keys() - other.tensors.keys()
    if 2 * len(names) < len(checkpoint.tensors):
        return checkpoint, ""
    ends = {name.partition(".")[2]: name for name in names}
    prefixes = set()
    for known in other.tensors:
        for name in names if known not in ends else [ends[known]]:
            if name.endswith(f".{known}"):
                prefixes.add(name.removesuffix(known))
        if prefixes:
            break
    for prefix in sorted(prefixes):
        without = {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        if sum(short in other.tensors for short in without.values()) * 2 > len(names):
            tensors = {
                without.get(name, name): replace(info, name=without.get(name, name))
                for name, info in checkpoint.tensors.items()
            }
            if len(tensors) == len(checkpoint.tensors):
                return replace(checkpoint, tensors=tensors), prefix
    return checkpoint, ""


def _lined_up(
    first: Checkpoint,
    second: Checkpoint,
    pairs: Sequence[MatrixPair],
    skipped: Sequence[Skipped],
) -> tuple[AlignedPair, list[Apart], list[Apart]]:
    """Every tensor of both in a pair, or in what only one of them has, or in what is not read."""
    lone: list[Apart] = []
    lined: list[MatrixPair] = []
    for pair in pairs:
        if pair.base is None:
            lone.append(_apart(pair.tuned.info, "tuned", "only in B"))
            continue
        lined.append(pair)
        if pair.detail:
            lone.append(_grown(pair))
    by_name: dict[str, dict[str, Skipped]] = {}
    for tensor in skipped:
        by_name.setdefault(tensor.info.name, {})[tensor.side] = tensor
    unread: list[Apart] = []
    unpacked = {
        _role(tensor.place)
        for of_name in by_name.values()
        for tensor in of_name.values()
        if tensor.reason == "quantized" and len(of_name) == 1
    }
    for of_name in by_name.values():
        base, tuned = of_name.get("base"), of_name.get("tuned")
        if base and tuned and (alike := _named_alike(base, tuned)):
            lined.append(alike)
            continue
        for tensor in of_name.values():
            if tensor.reason == "tied" and (head := _head_pair(tensor, pairs, skipped)):
                if head.key not in {pair.key for pair in lined}:
                    lined.append(head)
            elif _is_unread(tensor) or (
                tensor.reason in ("only_in_base", "only_in_tuned")
                and _role(tensor.place) in unpacked
            ):
                what = tensor.detail or "the other side is not read"
                unread.append(_apart(tensor.info, tensor.side, what))
            else:
                lone.append(_apart(tensor.info, tensor.side, _why(tensor)))
    found = AlignedPair(first, second, lined, [])
    return found, sorted(set(lone), key=_order), sorted(set(unread), key=_order)


def _order(one: Apart) -> tuple[str, str, str]:
    return one.tensor, one.side, one.what


def _apart(info: TensorInfo, side: str, what: str) -> Apart:
    return Apart(info.name, side, info.parameters, what)


def _grown(pair: MatrixPair) -> Apart:
    """The rows that only one side has of a vocabulary."""
    assert pair.base is not None, "lined up"
    more = pair.tuned.shape[0] - pair.base.shape[0]
    side, name, operand = ("tuned", "B", pair.tuned) if more > 0 else ("base", "A", pair.base)
    rows = counted(abs(more), "row", "rows")
    return Apart(operand.info.name, side, abs(more) * pair.cols, f"{rows} only in {name}")


def _role(place: Place) -> tuple[object, ...]:
    return place.component, place.layer, place.module, place.expert


def _is_unread(tensor: Skipped) -> bool:
    return tensor.reason in ("quantized", "unknown_dtype", "unreadable")


def _why(tensor: Skipped) -> str:
    """What is wrong with a tensor that has no partner."""
    if tensor.reason == "shape_differs":
        return tensor.detail.replace("base ", "A ").replace("tuned ", "B ")
    return f"only in {'A' if tensor.side == 'base' else 'B'}"


def _named_alike(base: Skipped, tuned: Skipped) -> MatrixPair | None:
    """Two tensors of one name and shape whose places say nothing: floats entry by entry, all else
    byte by byte where the dtypes are equal.
    """
    first, second = base.info, tuned.info
    if first.problem or second.problem or first.shape != second.shape:
        return None
    if {base.reason, tuned.reason} & {"shape_differs", "tied"}:
        return None
    place = replace(tuned.place, module="other", slot=f"\0{second.name}")
    if {base.reason, tuned.reason} == {"only_in_base", "only_in_tuned"}:
        one, other = Operand(first, Part(place)), Operand(second, Part(place))
        return MatrixPair(place, one, other, 1, first.parameters, is_matrix=False)
    size = first.end - first.start
    if first.dtype != second.dtype or size != second.end - second.start:
        return None
    if first.strides or second.strides:
        return None
    one, other = (
        Operand(replace(info, dtype=RAW, shape=(size,)), Part(place)) for info in (first, second)
    )
    return MatrixPair(place, one, other, 1, size, is_matrix=False, detail=BYTES)


def _head_pair(
    head: Skipped, pairs: Sequence[MatrixPair], skipped: Sequence[Skipped]
) -> MatrixPair | None:
    """A head that is stored although its config ties it to the embedding, beside the other side's:
    its head, or its embedding.
    """
    known = {pair.place.module: pair for pair in reversed(pairs) if pair.place.layer is None}
    partner = known.get("head") or known.get("embed")
    if partner is None or partner.base is None:
        return None
    mine = Operand(head.info, Part(head.place))
    other = partner.base if head.side == "tuned" else partner.tuned
    stored = [one for one in skipped if one.reason == "tied" and one.side != head.side]
    if stored:
        other = Operand(stored[0].info, Part(head.place))
    if mine.shape != other.shape:
        return None
    base, tuned = (other, mine) if head.side == "tuned" else (mine, other)
    rows, cols = mine.shape
    place = replace(head.place, slot=f"\0{head.info.name}")
    return MatrixPair(place, base, tuned, rows=rows, cols=cols, is_matrix=True)


def _row(pair: MatrixPair, base: Checkpoint, tuned: Checkpoint) -> Scanned:
    """The row of a pair; of bytes without norms."""
    assert pair.base is not None, "lined up"
    if pair.detail != BYTES:
        return scanned(pair, base, tuned)
    sides = sides_of(pair, base, tuned)
    stored = base.tensors[pair.base.info.name].dtype, tuned.tensors[pair.tuned.info.name].dtype
    return Scanned(
        place=in_words(pair.place),
        base=pair.base.info.name,
        tuned=pair.tuned.info.name,
        formats=stored,
        entries=pair.cols,
        changed=differing_bytes(sides),
        base_energy=0.0,
        tuned_energy=0.0,
        delta_energy=0.0,
        inner=0.0,
        finite=True,
        remark=BYTES,
    )


def _is_local(lined: AlignedPair) -> bool:
    sources = (*lined.base.sources.values(), *lined.tuned.sources.values())
    return all(source.is_local for source in sources)


def _moved(rows: Sequence[tuple[MatrixPair, Scanned]], lined: AlignedPair) -> dict[str, str]:
    """By the key of a pair whose tensors have little in common: what of A the tensor of B holds
    instead, where that shows. Reads these tensors again.
    """
    far = [
        (pair, row)
        for pair, row in rows
        if row.changed and row.finite and pair.is_matrix and row.rounded is None
        if row.inner**2 < FAR**2 * row.base_energy * row.tuned_energy
    ][:MOST_FAR]
    marks: dict[tuple[object, ...], str] = {}
    for pair, row in far:
        base = sides_of(pair, lined.base, lined.tuned).base
        marks[tuple(base.shape), mark(base)] = row.base
    said = {}
    for pair, _ in far:
        sides = sides_of(pair, lined.base, lined.tuned)
        elsewhere = marks.get((tuple(sides.tuned.shape), mark(sides.tuned)))
        if elsewhere is not None:
            said[pair.key] = f"A has these values in {elsewhere}"
        elif (order := reordered(sides)) is not None:
            said[pair.key] = f"it looks like A's with its {order} in another order"
    return said
