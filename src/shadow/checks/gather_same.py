"""What the claim `same` needs measured: every tensor of two checkpoints beside its partner."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from shadow.checkpoints.adapters import adapter_factors
from shadow.checkpoints.opening import Assembled, Checkpoint, Found, Located
from shadow.checkpoints.pairing import MatrixPair
from shadow.checkpoints.quantized import settings_in
from shadow.checkpoints.sources import LocalFile
from shadow.checks.answer import Answer
from shadow.checks.same import Compared, same
from shadow.checks.verification import Verification
from shadow.errors import UsageError
from shadow.run.aligned import found_all, line_up_all, row_of
from shadow.run.runtime import AlignedPair, Runtime
from shadow.run.scan import scan, sides_of
from shadow.run.scanned import Scanned
from shadow.run.sides import open_found
from shadow.spectra.entries import mark
from shadow.targets.references import AnyReference

FAR = 0.5  # |cosine| below which two tensors have little in common
MOST_FAR = 64  # such tensors, of which another place is looked for


def verify_same(
    of: Mapping[str, str],
    references: Sequence[AnyReference],
    runtime: Runtime,
    scratch: Path,
) -> Verification:
    """Whether two checkpoints hold equal tensors."""
    runtime = replace(runtime, access=replace(runtime.access, dora=True))
    found = found_all(dict(zip("AB", references, strict=True)), runtime, scratch)
    if _is_one(*found.values()):
        why = "A and B are one checkpoint, so nothing was compared"
        return Verification("same", of, Answer("same", "cannot_be_told", why))
    if equal := _same_files(*found.values()):
        return Verification("same", of, Answer("same", "holds", equal, {}))
    first, second = (open_found(one, runtime, scratch / name) for name, one in found.items())
    _require_alike(first, second)
    lined = line_up_all(first, second, ("A", "B"))
    compared = list(
        scan(
            lined.pair,
            lambda pair, a, b: (pair, row_of(pair, a, b)),
            runtime,
            scratch / "scan",
            lined.unread,
        )
    )
    compared.sort(key=lambda item: item[0].key)
    moved = _moved(compared, lined.pair) if _is_local(lined.pair) else {}
    rows = [replace(row, remark=moved.get(pair.key, row.remark)) for pair, row in compared]
    with_norms = [name for name, one in zip("AB", (first, second), strict=True)
                  if one.adapter and one.adapter.dora]  # fmt: skip
    dora = with_norms[0] if len(with_norms) == 1 else ""
    scales = _scales(first, second)
    reshaped = [text for pair, _ in compared if (text := _reshaped(pair))]
    answer, against = same(Compared(rows, lined.lone, lined.unread, scales, dora, reshaped))
    return Verification("same", of, answer, against, lined.notes)


def _is_one(first: Found, second: Found) -> bool:
    """Whether both are one folder, or one commit."""
    folders = Path(first.reference).resolve(), Path(second.reference).resolve()
    return first.commit == second.commit and folders[0] == folders[1]


def _reshaped(pair: MatrixPair) -> str:
    """The shapes of a vector that both store as a whole, but not alike; empty where they do."""
    assert pair.base is not None, "lined up"
    shapes = pair.base.stored_shape, pair.tuned.stored_shape
    if pair.is_matrix or shapes[0] == shapes[1] or math.prod(shapes[0]) != math.prod(shapes[1]):
        return ""
    return "{} in A, {} in B".format(*(" x ".join(map(str, shape)) or "()" for shape in shapes))


def _same_files(first: Found, second: Found) -> str | None:
    """Why no byte need be read: the files of both are the same, and are decoded alike; None where
    that is not known.
    """
    if isinstance(first, Assembled) or isinstance(second, Assembled):
        return None
    if list(settings_in(first.config)) != list(settings_in(second.config)):
        return None
    if isinstance(first, Located) and isinstance(second, Located):
        digests = [
            sorted(one.snapshot.files[shard].checksum or "" for shard in one.weights.shards)
            for one in (first, second)
        ]
        alike = digests[0] == digests[1] and all(digests[0])
        if alike and first.weights.adapter == second.weights.adapter:
            return "the weight files have equal checksums"
    if not (isinstance(first, Checkpoint) and isinstance(second, Checkpoint)):
        return None
    if first.adapter == second.adapter:
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


def _scales(first: Checkpoint, second: Checkpoint) -> dict[str, tuple[float, float]]:
    """What two adapters multiply the update of a module by, by module, where that differs."""
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
    return said
