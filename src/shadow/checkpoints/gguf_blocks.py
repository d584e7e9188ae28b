"""Blocks of GGUF files -> numbers, by the `gguf` package, and where llama.cpp stores which row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shadow.checkpoints.packed_tensors import (
    Cells,
    Codebook,
    Cols,
    DecodedTensor,
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
# quant is 1; 0 where every one is. All other bytes are scales and offsets.
QUANTS: Mapping[str, tuple[tuple[int, int, int], ...]] = {  # (start, stop, all 1)
    "Q4_0": ((2, 18, 0x11),),
    "Q4_1": ((4, 20, 0x11),),
    "Q5_0": ((2, 6, 0x00), (6, 22, 0x11)),
    "Q5_1": ((4, 8, 0x00), (8, 24, 0x11)),
    "Q8_0": ((2, 34, 0x01),),
    "Q2_K": ((16, 80, 0x55),),
    "Q3_K": ((0, 32, 0x00), (32, 96, 0x55)),
    "Q4_K": ((16, 144, 0x11),),
    "Q5_K": ((16, 48, 0x00), (48, 176, 0x11)),
    "Q6_K": ((0, 128, 0x11), (128, 192, 0x00)),
    "TQ1_0": ((0, 52, 0x80),),  # digits to base 3, as a fraction of 256
    "TQ2_0": ((0, 64, 0x55),),
}

CODEBOOKS = {"MXFP4": (1, 17), "NVFP4": (4, 36)}  # the bytes of a block that hold numbers of E2M1
ONE = 0x22  # both numbers of a byte are 1


class Blocks:
    """A matrix of blocks of a type of ggml, each of one row."""

    costly = True

    def __init__(self, raw: StoredTensor, kind: str, order: Order) -> None:
        """raw: bytes, (rows, bytes of a row). order: where each row is stored."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

        self._raw, self._kind, self._order = raw, kind, order
        self.unit, self._size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        self._type = getattr(quants, kind)
        self._type.init_grid()
        self.width = raw.shape[1] // self._size * self.unit

    def values(self, rows: Rows, cols: Cols, into: Tensor) -> None:
        into.copy_(self._decoded(self._blocks(rows, cols), len(rows)))

    def cells(self, rows: Rows, cols: Cols) -> Cells:
        blocks = self._blocks(rows, cols)
        if self._kind in CODEBOOKS:
            scales = self._filled(blocks, [(*CODEBOOKS[self._kind], ONE)], len(rows))
            ends = Codebook(E2M1).cells(self._decoded(blocks, len(rows)) / scales)
            return tuple(end * scales for end in ends)
        if self._kind not in QUANTS:
            return ()
        quants = QUANTS[self._kind]
        zero = self._filled(blocks, [(start, stop, 0) for start, stop, _ in quants], len(rows))
        return ((self._filled(blocks, quants, len(rows)) - zero).abs(),)

    def _filled(self, blocks: Bytes, parts: Iterable[tuple[int, int, int]], rows: int) -> Tensor:
        """The numbers of blocks of which some bytes (start, stop) hold another one."""
        blocks = blocks.copy()
        for start, stop, byte in parts:
            blocks[:, start:stop] = byte
        return self._decoded(blocks, rows)

    def _blocks(self, rows: Rows, cols: Cols) -> Bytes:
        start, stop = (col // self.unit * self._size for col in cols)
        part = take(self._raw, self._order(rows), (start, stop))
        return np.ascontiguousarray(part.numpy()).reshape(-1, self._size)

    def _decoded(self, blocks: Bytes, rows: int) -> Tensor:
        # what `gguf.quants.dequantize` calls for 16 rows at a time, and copies
        with np.errstate(all="ignore"):  # scales may be NaN, which is for the audit to find
            return torch.from_numpy(self._type.dequantize_blocks(blocks)).view(rows, -1)


class Moved:
    """Floats whose rows are stored in another order, or with a number added to them."""

    unit, costly = 1, False

    def __init__(self, raw: StoredTensor, order: Order, added: float) -> None:
        self._raw, self._order, self._added = raw, order, added

    def values(self, rows: Rows, cols: Cols, into: Tensor) -> None:
        into.copy_(take(self._raw, self._order(rows), cols))
        if self._added:
            into.sub_(self._added)

    def cells(self, rows: Rows, cols: Cols) -> Cells:
        """Floats have none of one format."""
        return ()


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
    are stored in pairs, or 0, and what was added to its numbers. read opens what lies in files.
    """
    assert info.packing is not None
    raw, (heads, added) = read(info.packing.raw), info.packing.facts
    order = pairs_of(heads, raw.shape[0]) if heads else lambda rows: rows
    if info.dtype in FLOATS:
        view = torch.empty(info.shape, dtype=raw.dtype, device="meta")
        moved = Moved(raw, order, added)
        return DecodedTensor(info.dtype, moved, view, raw.shape[1], info.end - info.start)
    blocks, is_turned = Blocks(raw, info.dtype, order), info.strides is not None
    view = torch.empty(info.shape[::-1] if is_turned else info.shape, device="meta")
    view = view.T if is_turned else view
    return PackedTensor(info.dtype, blocks, view, blocks.width, info.end - info.start)
