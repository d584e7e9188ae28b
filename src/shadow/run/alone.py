"""One checkpoint by itself: what each of its tensors looks like, in one sweep over its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.packed_tensors import DecodedTensor
from shadow.checkpoints.pairing import MatrixPair, Operand
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.stored_tensors import StoredTensor
from shadow.dtypes import FLOATS, INTEGERS
from shadow.places.architecture import Part, Place
from shadow.run.runtime import AlignedPair, Runtime
from shadow.run.scan import scan
from shadow.run.scanned import Apart
from shadow.run.workers import own_workspace
from shadow.spectra.entries import compared
from shadow.spectra.extremes import Extremes, looked_at
from shadow.spectra.spectrum import Sides, working_dtype

Read = StoredTensor | DecodedTensor
NOWHERE = Place("other", None, "other")


@dataclass(frozen=True)
class Swept:
    """A tensor, and what its entries look like."""

    info: TensorInfo
    found: Extremes


def sweep(
    checkpoint: Checkpoint, tensors: Iterable[TensorInfo], runtime: Runtime, scratch: Path
) -> tuple[list[Swept], list[Apart]]:
    """Every tensor of floats or of packed numbers, by name; and those that cannot be decoded."""
    pairs = [
        MatrixPair(replace(NOWHERE, slot=info.name), None, Operand(info, Part(NOWHERE)), rows, cols,
                   is_matrix=False)
        for info in tensors
        if info.parameters and not info.problem and not info.alias_of
        if info.dtype in FLOATS or info.dtype in INTEGERS or info.packing
        for rows, cols in [_sides(info)]
    ]  # fmt: skip

    def measure(pair: MatrixPair, _: Checkpoint, own: Checkpoint) -> Swept:
        info = pair.tuned.info
        raw = info if info.dtype in FLOATS or info.packing else _bytes(info)
        view = own.tensor(raw).seen(lambda tensor: tensor.reshape(_sides(raw)))
        return Swept(info, looked_at(view, own_workspace()))

    unread: list[Apart] = []
    lined = AlignedPair(replace(checkpoint, adapter=None), checkpoint, pairs, [])
    found = [*scan(lined, measure, runtime, scratch, unread)]
    return sorted(found, key=lambda one: one.info.name), unread


def _sides(info: TensorInfo) -> tuple[int, int]:
    """Rows and columns: all dimensions but the last are rows."""
    cols = info.shape[-1] if len(info.shape) > 1 else info.parameters
    return info.parameters // max(1, cols), cols


def _bytes(info: TensorInfo) -> TensorInfo:
    """Numbers that are no floats as a row of bytes."""
    return replace(info, dtype="U8", shape=(1, info.end - info.start), strides=None)


def same_values(
    read: Callable[[TensorInfo], Read], one: TensorInfo, other: TensorInfo, heads: int = 0
) -> bool:
    """Whether two tensors hold equal values. heads: the rows of the other are those of so many
    heads, in each of which the two halves of a rotation lie one after the other and not in turn.
    """
    if one.shape != other.shape:
        return False
    formats, sides = (one.dtype, other.dtype), _sides(one)
    if not all(info.dtype in FLOATS or info.packing for info in (one, other)):
        one, other = _bytes(one), _bytes(other)
        return formats[0] == formats[1] and torch.equal(read(one).whole(), read(other).whole())
    first, second = read(one), read(other)

    def ordered(tensor: torch.Tensor) -> torch.Tensor:
        if heads:
            tensor = tensor.reshape(heads, 2, -1, sides[1]).transpose(1, 2)
        return tensor.reshape(sides)

    views = first.seen(lambda tensor: tensor.reshape(sides)), second.seen(ordered)
    return not compared(Sides(*views, working_dtype(*formats), own_workspace()), formats).changed
