"""The bytes of quantised matrices -> numbers: of safetensors files (level - zero) * scale + bias in
float32, with the arithmetic of the library that writes the format; of GGUF files by the `gguf`
package.

Levels are whole numbers, or from a codebook; a group of columns shares the other numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from shadow.checkpoints.formats import quant_state
from shadow.checkpoints.gguf_files import KIND as GGUF
from shadow.checkpoints.safetensors_files import Packing, TensorInfo
from shadow.checkpoints.stored_tensors import (
    Cells,
    Cols,
    DecodedTensor,
    Decoder,
    PackedTensor,
    Rows,
    StoredTensor,
)
from shadow.dtypes import E2M1, FLOATS, FP4, NF4
from shadow.errors import UndecodableError

# where AWQ keeps the eight outputs of a word, in nibbles (awq/utils/packing_utils.py)
AWQ_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)
OF_INT8 = 7.874015718698502e-3  # 1 / 127, as bitsandbytes multiplies

Pieces = Mapping[str, StoredTensor]
Raw = StoredTensor | Tensor
Of = Callable[[Rows, Cols], Tensor]
"""What entries of a part share, float32: (rows, columns), or (rows, groups, 1) where equal groups
fill the rows.
"""


@dataclass(frozen=True)
class Grid:
    """Levels, and how they become numbers."""

    width: int
    unit: int
    levels: Of  # (rows, cols)
    scale: Of
    zeros: Of | None = None
    biases: Of | None = None
    last: float = 1.0  # what numbers are multiplied by at last
    codebook: Sequence[float] = ()  # all levels; none where they are whole numbers
    reach: float = math.inf  # the largest level that is rounded to; larger numbers are clipped
    # how far the scales by which a codebook's levels were chosen lie from those that are stored
    loose: Of | None = None
    costly = False

    def values(self, rows: Rows, cols: Cols, into: Tensor) -> None:
        into.copy_(self.levels(rows, cols))
        self._scale(into, rows, cols)

    def _scale(self, into: Tensor, rows: Rows, cols: Cols) -> None:
        """Turn levels into numbers, in place."""
        if self.zeros is not None:
            _each(into, self.zeros(rows, cols), torch.Tensor.sub_)
        _each(into, self.scale(rows, cols), torch.Tensor.mul_)
        if self.biases is not None:
            _each(into, self.biases(rows, cols), torch.Tensor.add_)
        if self.last != 1:
            into.mul_(self.last)

    def cells(self, rows: Rows, cols: Cols) -> Cells:
        if not self.codebook:
            step = torch.ones(len(rows), cols[1] - cols[0])
            _each(step, self.scale(rows, cols).abs(), torch.Tensor.mul_)
            return (step.mul_(self.last),)
        known = torch.tensor(sorted(set(self.codebook)), dtype=torch.float32)
        middles = (known[1:] + known[:-1]) / 2
        reach = torch.tensor([self.reach])
        edges = torch.cat([-reach, middles, reach])
        place = torch.bucketize(self.levels(rows, cols), middles)
        ends = edges[place], edges[place + 1]
        wider = [end.abs() if self.loose else torch.zeros(()) for end in ends]
        for end, more in zip(ends, wider, strict=True):
            if self.loose is not None:
                _each(more, self.loose(rows, cols), torch.Tensor.mul_)
            self._scale(end, rows, cols)
        return torch.minimum(*ends) - wider[0], torch.maximum(*ends) + wider[1]  # scales may be < 0


def _each(made: Tensor, shared: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Combine every entry with a value that it shares with others."""
    change(made if shared.ndim == 2 else made.view(*shared.shape[:2], -1), shared)


def _take(raw: Raw, rows: Rows, cols: Cols) -> Tensor:
    """Read these rows of a matrix, limited to some columns; all rows if not consecutive."""
    first = int(rows.min())
    last = int(rows.max())
    part = raw[first : last + 1, slice(*cols)]
    if last - first == len(rows) - 1 and bool((rows[1:] > rows[:-1]).all()):
        return part
    return part.index_select(0, torch.from_numpy(rows - first))


def _compact(words: Tensor) -> Tensor:
    """Copy words without gaps. The rows of a transposed matrix are selected first: torch transposes
    contiguous data two to four times as fast.
    """
    if words.ndim == 2 and words.stride(1) != 1:
        words = words.T.contiguous().T
    # a clone, as one word a row may pass for contiguous with any stride, and is then no bytes
    return words.clone(memory_format=torch.contiguous_format)


@cache  # its numbers that are NaN are known again, as only the same object is
def numbers_of_bytes(dtype: torch.dtype) -> tuple[float, ...]:
    """Return the number of each byte in an 8-bit dtype."""
    return tuple(torch.arange(256, dtype=torch.uint8).view(dtype).float().tolist())


@cache
def code_table(values: tuple[float, ...], bits: int, high_first: bool) -> Tensor:
    """Return the values of the numbers in a byte, for every byte: float32 (256, numbers)."""
    shifts = torch.arange(0, 1 if 8 % bits else 8, bits)
    codes = torch.arange(256)[:, None] >> (shifts.flip(0) if high_first else shifts)
    return torch.tensor(values, dtype=torch.float32)[codes & ((1 << bits) - 1)]


def numbers_of(
    raw: Tensor, bits: int, values: Iterable[float], count: int, high_first: bool = False
) -> Tensor:
    """Look up the first count numbers, each of this many bits, lowest first: float32 (rows, count).

    raw: bytes (rows, some). values: of each number.
    """
    table = code_table(tuple(values), bits, high_first)
    if 8 % bits:  # so many bytes hold eight numbers, of which each gets a byte
        raw = torch.nn.functional.pad(raw, (0, -raw.shape[1] % bits))
        eights = raw.view(len(raw), -1, bits).long() << 8 * torch.arange(bits)
        raw = (eights.sum(-1, keepdim=True) >> bits * torch.arange(8)) & ((1 << bits) - 1)
    # the numbers of a byte are looked up as one
    wide = {1: torch.float32, 2: torch.int64, 4: torch.complex128}[table.shape[1]]
    found = table.view(wide).view(-1).index_select(0, raw.reshape(-1).int())
    return found.view(torch.float32).view(len(raw), -1)[:, :count]


def _streamed(raw: Raw, bits: int, values: Sequence[float], high_first: bool = False) -> Of:
    """Return the values of numbers of that many bits. raw: bytes or words, (rows, some)."""
    of_word = 8 * raw.dtype.itemsize

    def levels(rows: Rows, cols: Cols) -> Tensor:
        words = _take(raw, rows, (cols[0] * bits // of_word, -(-cols[1] * bits // of_word)))
        found = _compact(words).view(torch.uint8)
        return numbers_of(found, bits, values, cols[1] - cols[0], high_first)

    return levels


def _shared(values: Tensor, group: int | Tensor) -> Of:
    """Return a function that looks up the value that each group of columns shares. values: (rows,
    groups). With several groups, only whole groups of columns can be requested.
    """

    def of(rows: Rows, cols: Cols) -> Tensor:
        mine, (start, stop) = values[torch.from_numpy(rows)], cols
        if isinstance(group, Tensor):
            return mine.index_select(1, group[start:stop])
        return mine if mine.shape[1] == 1 else mine[:, start // group : stop // group, None]

    return of


def _grouped(info: TensorInfo, pieces: Pieces, packing: Packing) -> Grid:
    """Decode (level - zero) * scale + bias, where a block of entries shares all but the levels.

    A block is a group of the columns of a row; with 8-bit numbers it may be a row, some rows or the
    whole matrix. The last blocks may be cut off. GPTQ and AWQ are stored transposed, and the words
    of AWQ hold rows.
    """
    kind, (bits, high, wide, added) = packing.kind, packing.facts
    *stack, rows, cols = info.shape
    is_turned = kind in ("gptq", "awq")
    words = pieces["words"]
    if "stated" in pieces and pieces["stated"].whole().tolist() != [rows, cols]:
        raise _broken(info, "weight_shape is not that of the other layers")
    if "layout" in pieces and int(pieces["layout"].whole()) != 0:
        raise _broken(info, "its weight_format is not the one of rows")
    scales = pieces["scales"].whole()
    in_order = torch.arange(cols) // wide
    groups = pieces["order"].whole().long() if "order" in pieces else in_order
    count = scales.shape[0 if is_turned else -1] if "order" in pieces else len(groups)
    if not 0 <= groups.min() <= groups.max() < count:
        raise _broken(info, "g_idx names groups that do not exist")
    # whole groups are faster
    group = wide if cols % wide == 0 and torch.equal(groups, in_order) else groups

    def shared(values: Tensor) -> Of:
        """Return a function that looks up what blocks share."""
        grid = (values.T if is_turned else values).float()
        grid = grid.reshape(math.prod(stack), -(-rows // high), -1)
        return _shared(grid.repeat_interleave(high, 1)[:, :rows].flatten(0, 1), group)

    if scales.dtype == torch.uint8:  # MXFP4: exponents of 2
        scales = torch.ldexp(torch.ones(256), torch.arange(256) - 127)[scales.int()]
    if "divisor" in pieces:  # NVFP4 of compressed-tensors, and of ModelOpt
        scales = scales.float() / pieces["divisor"].whole().float().flatten()
    if "factor" in pieces:
        scales = scales.float() * pieces["factor"].whole().float().flatten()
    zeros = None
    if "zeros" in pieces:
        stored = pieces["zeros"].whole()
        if kind != "scaled":
            packed = _compact(stored if is_turned else stored.T).view(torch.uint8)
            stored = numbers_of(packed, bits, range(1 << bits), rows)
            if kind == "awq":
                stored = stored.view(len(stored), -1, 8)[..., list(AWQ_NIBBLES)].flatten(-2)
            stored = stored + added if is_turned else stored.T
        zeros = shared(stored)
    # without zeros the middle of `pack-quantized` is 0
    first = -(1 << (bits - 1)) if kind == "pack-quantized" and zeros is None else 0
    values: Sequence[float] = E2M1 if kind == "e2m1" else range(first, first + (1 << bits))
    if kind in ("scaled", "llm.int8"):
        values = numbers_of_bytes(words.dtype)
    raw = words.seen(lambda one: one.view(torch.int32).T) if is_turned else _bytes(words, info)

    def interleaved(rows: Rows, cols: Cols) -> Tensor:
        """Unpack the numbers of AWQ, eight rows in a word."""
        shifts = 4 * torch.tensor(AWQ_NIBBLES, dtype=torch.int32)[rows % 8]
        return (_take(raw, rows // 8, cols) >> shifts[:, None]).bitwise_and_(15)

    levels = interleaved if kind == "awq" else _streamed(raw, bits, values)
    book = filter(math.isfinite, values) if kind == "e2m1" or info.dtype in FLOATS else ()
    unit = 32 if isinstance(group, Tensor) or wide == cols else math.lcm(32, wide)
    return Grid(
        cols,
        unit if cols % unit == 0 else cols,
        levels,
        shared(scales),
        zeros,
        shared(pieces["biases"].whole()) if "biases" in pieces else None,
        OF_INT8 if kind == "llm.int8" else 1.0,
        tuple(book),
    )


def _bitsandbytes_4bit(info: TensorInfo, pieces: Pieces, packing: Packing) -> Grid:
    """Decode bitsandbytes' NF4 and FP4: level * absmax. Blocks run through all entries. Their
    scales may be quantised to 8 bits of a codebook, again in blocks.
    """
    (block,), (rows, cols) = packing.facts, info.shape
    state = quant_state(bytes(pieces["state"].whole().tolist()))
    if state[:3] != (rows, cols, block):
        raise _broken(info, "its quant_state is not that of the other layers")
    scales = pieces["scales"].whole().flatten()
    loose = None
    if "outer" in pieces:
        *_, step, offset = state
        outer = pieces["outer"].whole().float().flatten()
        if -(-len(scales) // step) != len(outer):
            raise _broken(info, "nested_absmax has another number of blocks")
        codes = pieces["codes"].whole().float()
        wide = outer.repeat_interleave(step)[: len(scales)]
        scales = codes[scales.int()] * wide + offset
        # levels are chosen before scales are rounded, to the nearest code
        loose = wide.abs() * codes.sort().values.diff().max() / 2

    def by_block(values: Tensor) -> Of:
        if cols % block == 0:
            return _shared(values.view(rows, -1), block)
        return lambda rows, columns: values[
            torch.from_numpy(np.add.outer(rows * cols, np.arange(*columns)) // block)
        ]

    known = NF4 if info.dtype == "NF4" else FP4
    return Grid(
        cols,
        2 if cols % block else block,
        _streamed(_bytes(pieces["words"], info), 4, known, high_first=True),
        by_block(scales.float()),
        codebook=known,
        reach=max(known),  # the scale of a block is its largest number
        loose=None if loose is None else by_block(loose),
    )


def _bytes(stored: StoredTensor, info: TensorInfo) -> Raw:
    """Return stored data as bytes, (rows, bytes of a row)."""
    return stored.seen(lambda one: one.view(torch.uint8).reshape(math.prod(info.shape[:-1]), -1))


def _broken(info: TensorInfo, what: str) -> UndecodableError:
    return UndecodableError(f"{info.name} ({info.dtype}): {what}", "quantise the model again")


# Even grids of GGUF: for each type the bytes of a block that hold the quants, and what they are
# where every quant is 1; 0 where every one is. All other bytes are scales and offsets.
QUANTS: Mapping[str, tuple[tuple[int, int, int], ...]] = {  # (start, stop, all 1)
    "Q4_0": ((2, 18, 0x11),), "Q4_1": ((4, 20, 0x11),), "Q8_0": ((2, 34, 0x01),),
    "Q5_0": ((2, 6, 0x00), (6, 22, 0x11)), "Q5_1": ((4, 8, 0x00), (8, 24, 0x11)),
    "Q2_K": ((16, 80, 0x55),), "Q3_K": ((0, 32, 0x00), (32, 96, 0x55)), "Q4_K": ((16, 144, 0x11),),
    "Q5_K": ((16, 48, 0x00), (48, 176, 0x11)), "Q6_K": ((0, 128, 0x11), (128, 192, 0x00)),
    "TQ1_0": ((0, 52, 0x80),), "TQ2_0": ((0, 64, 0x55),),  # TQ1_0: to base 3, a fraction of 256
}  # fmt: skip


class GgmlBlocks:
    """A matrix in blocks of a ggml type, each within one row."""

    costly = True

    def __init__(
        self, raw: StoredTensor, kind: str, order: Callable[[Rows], Rows] = lambda rows: rows
    ) -> None:
        """raw: bytes, (rows, bytes of a row). order: where each row is stored."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

        self._raw = raw
        self._kind = kind
        self._order = order
        self.unit, self._size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        self._type = getattr(quants, kind)
        self._type.init_grid()
        self.width = raw.shape[1] // self._size * self.unit

    def values(self, rows: Rows, cols: Cols, into: Tensor) -> None:
        into.copy_(self._decoded(rows, cols))

    def cells(self, rows: Rows, cols: Cols) -> Cells:
        if self._kind not in QUANTS:
            return ()
        quants = QUANTS[self._kind]
        zero = self._decoded(rows, cols, *((start, stop, 0) for start, stop, _ in quants))
        return ((self._decoded(rows, cols, *quants) - zero).abs(),)

    def _decoded(self, rows: Rows, cols: Cols, *filled: tuple[int, int, int]) -> Tensor:
        """Return the numbers of blocks in which some bytes (start, stop) hold another block."""
        start, stop = (col // self.unit * self._size for col in cols)
        part = _take(self._raw, self._order(rows), (start, stop)).numpy()
        blocks = np.array(part, order="C", copy=bool(filled) or None).reshape(-1, self._size)
        for start, stop, byte in filled:
            blocks[:, start:stop] = byte
        # what `gguf.quants.dequantize` calls for 16 rows at a time, and copies
        with np.errstate(all="ignore"):  # scales may be NaN, which is for the audit to find
            return torch.from_numpy(self._type.dequantize_blocks(blocks)).view(len(rows), -1)


def _gguf(info: TensorInfo, pieces: Pieces, packing: Packing) -> Decoder:
    """Make the decoder of a GGUF tensor, or of floats whose rows are stored in another order.

    Facts of its packing: the number of heads whose rows are stored in pairs, or 0, and what was
    added to its numbers. Rotary embeddings turn row i of a head with row i + d/2 in transformers,
    and with its neighbour in llama.cpp: `w.reshape(heads, 2, d/2, cols).swapaxes(1, 2)` is stored.
    """
    raw, (heads, added) = pieces["words"], packing.facts
    half = raw.shape[0] // (heads or 1) // 2

    def order(rows: Rows) -> Rows:
        if not heads:
            return rows
        pair, place = np.divmod(rows, half)
        head, second = np.divmod(pair, 2)
        return (head * half + place) * 2 + second

    def of_all(value: int) -> Of:
        return lambda rows, cols: torch.full((len(rows), 1), float(value))

    if info.dtype not in FLOATS:
        return GgmlBlocks(raw, info.dtype, order)
    zeros = of_all(added) if added else None
    return Grid(raw.shape[1], 1, lambda rows, cols: _take(raw, order(rows), cols), of_all(1), zeros)


def packed_tensor(info: TensorInfo, read: Callable[[TensorInfo], StoredTensor]) -> DecodedTensor:
    """Open the tensor of an entry with a packing. read: opens what lies in files."""
    packing = info.packing
    assert packing is not None
    infos = zip(packing.roles, (packing.raw, *packing.beside), strict=False)
    pieces = {role: read(one) for role, one in infos}
    upright = info
    if info.strides is not None:  # decoded are the transposes of its matrices
        *stack, cols, rows = info.shape
        upright = replace(info, shape=(*stack, rows, cols))
    own = {GGUF: _gguf, "bitsandbytes-4bit": _bitsandbytes_4bit}
    decoder: Decoder = own.get(packing.kind, _grouped)(upright, pieces, packing)
    is_float = packing.kind == GGUF and info.dtype in FLOATS  # which have no single grid
    dtype = pieces["words"].dtype if is_float else torch.float32
    view = torch.empty(upright.shape, dtype=dtype, device="meta")
    view = view if info.strides is None else view.mT
    made = DecodedTensor if is_float else PackedTensor
    return made(info.dtype, decoder, view, packing.raw.end - packing.raw.start)
