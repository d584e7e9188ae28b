"""Blocks of GGUF files -> numbers, by the `gguf` package, and where llama.cpp stores which row."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.checkpoints.packed_tensors import (
    Cells,
    Codebook,
    Cols,
    DecodedTensor,
    Moved,
    PackedTensor,
    Read,
    Rows,
    take,
)
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.stored_tensors import StoredTensor
from shadow.dtypes import E2M1, FLOATS

Bytes = NDArray[np.uint8]
Order = Callable[[Rows], Rows]

# Even grids: for each type the bytes of a block that hold the quants, and what they are where every
# quant is 0 or 1. All other bytes are scales and offsets.
QUANTS: Mapping[str, tuple[tuple[int, int, int, int], ...]] = {  # (start, stop, all 0, all 1)
    "Q4_0": ((2, 18, 0x00, 0x11),),
    "Q4_1": ((4, 20, 0x00, 0x11),),
    "Q5_0": ((2, 6, 0x00, 0x00), (6, 22, 0x00, 0x11)),
    "Q5_1": ((4, 8, 0x00, 0x00), (8, 24, 0x00, 0x11)),
    "Q8_0": ((2, 34, 0x00, 0x01),),
    "Q2_K": ((16, 80, 0x00, 0x55),),
    "Q3_K": ((0, 32, 0x00, 0x00), (32, 96, 0x00, 0x55)),
    "Q4_K": ((16, 144, 0x00, 0x11),),
    "Q5_K": ((16, 48, 0x00, 0x00), (48, 176, 0x00, 0x11)),
    "Q6_K": ((0, 128, 0x00, 0x11), (128, 192, 0x00, 0x00)),
    "TQ1_0": ((0, 52, 0x00, 0x80),),  # digits to base 3, as a fraction of 256
    "TQ2_0": ((0, 64, 0x00, 0x55),),
}

CODEBOOKS = {"MXFP4": (1, 17), "NVFP4": (4, 36)}  # the bytes of a block that hold numbers of E2M1
ONE = 0x22  # both numbers of a byte are 1


class Blocks:
    """A matrix of blocks of a type of ggml, each of one row."""

    costly = True

    def __init__(self, raw: StoredTensor, kind: str, order: Order) -> None:
        """raw: bytes, (rows, bytes of a row). order: where each row is stored."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

        self._raw = raw
        self._kind = GGMLQuantizationType[kind]
        self._order = order
        self.unit, self._size = GGML_QUANT_SIZES[self._kind]
        self._type = getattr(quants, kind)
        self._type.init_grid()
        self.width = raw.shape[1] // self._size * self.unit

    def values(self, rows: Rows, cols: Cols, into: Tensor) -> None:
        into.copy_(torch.from_numpy(self._decoded(self._blocks(rows, cols))).view(len(rows), -1))

    def steps(self, rows: Rows, cols: Cols) -> Tensor | None:
        quants = QUANTS.get(self._kind.name)
        if quants is None:
            return None
        blocks = self._blocks(rows, cols).reshape(-1, self._size)
        ends = []
        for level in (2, 3):
            filled = blocks.copy()
            for part in quants:
                filled[:, part[0] : part[1]] = part[level]
            ends.append(self._decoded(filled))
        return torch.from_numpy(np.abs(ends[1] - ends[0])).view(len(rows), -1)

    def cells(self, rows: Rows, cols: Cols) -> Cells | None:
        quants = CODEBOOKS.get(self._kind.name)
        if quants is None:
            return None
        blocks = self._blocks(rows, cols).reshape(-1, self._size)
        filled = blocks.copy()
        filled[:, slice(*quants)] = ONE
        made, scales = (
            torch.from_numpy(self._decoded(one)).view(len(rows), -1) for one in (blocks, filled)
        )
        low, high = Codebook(E2M1).cells(made / scales)
        return low * scales, high * scales

    def _blocks(self, rows: Rows, cols: Cols) -> Bytes:
        start, stop = (col // self.unit * self._size for col in cols)
        return np.ascontiguousarray(take(self._raw, self._order(rows), (start, stop)).numpy())

    def _decoded(self, blocks: Bytes) -> NDArray[np.float32]:
        # what `gguf.quants.dequantize` calls for 16 rows at a time, and copies
        with np.errstate(all="ignore"):  # scales may be NaN, which is for the audit to find
            found: NDArray[np.float32] = self._type.dequantize_blocks(
                blocks.reshape(-1, self._size)
            )
        return found


def in_place(numbers: Rows) -> Rows:
    """Every row is stored where transformers has it."""
    return numbers


def fused(heads: int, groups: int, rows: int) -> Order:
    """Where llama.cpp stores each row of a fused q, k and v: one after another. In transformers
    every group has its heads of q, its k and its v.
    """
    each = heads // groups
    size = rows // (heads + 2 * groups)

    def stored(numbers: Rows) -> Rows:
        head, within = np.divmod(numbers, size)
        group, part = np.divmod(head, each + 2)
        place = np.where(part < each, group * each + part, heads + (part - each) * groups + group)
        return place * size + within

    return stored


def pairs_of(heads: int, rows: int) -> Order:
    """Where llama.cpp stores each row of transformers' q_proj or k_proj.

    Rotary embeddings turn row i of a head with row i + d/2 in transformers, and neighbours in
    llama.cpp: `w.reshape(heads, 2, d/2, cols).swapaxes(1, 2)` is stored.
    """
    half = rows // heads // 2

    def stored(numbers: Rows) -> Rows:
        pair, place = np.divmod(numbers, half)
        head, second = np.divmod(pair, 2)
        return (head * half + place) * 2 + second

    return stored


def gguf_tensor(info: TensorInfo, read: Read) -> DecodedTensor:
    """A tensor of a GGUF file that is not stored as it is. Facts of its packing: heads whose rows
    are stored in another order, or 0; groups of a fused q, k and v, or 0; and what was added to its
    numbers. read opens what lies in files.
    """
    assert info.packing is not None
    raw, (heads, groups, added) = read(info.packing.raw), info.packing.facts
    stored, rows = info.end - info.start, raw.shape[0]
    order = pairs_of(heads, rows) if heads else in_place
    if groups:
        order = fused(heads, groups, rows)
    if info.dtype in FLOATS:
        view = torch.empty(info.shape, dtype=raw.dtype, device="meta")
        return DecodedTensor(info.dtype, Moved(raw, order, added), view, raw.shape[1], stored)
    blocks, is_turned = Blocks(raw, info.dtype, order), info.strides is not None
    view = torch.empty(info.shape[::-1] if is_turned else info.shape, device="meta")
    view = view.T if is_turned else view
    return PackedTensor(info.dtype, blocks, view, blocks.width, stored)
