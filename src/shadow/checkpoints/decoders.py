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

from shadow.checkpoints.formats import Filled, even_grids, quant_state
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
TURNED = ("gptq", "awq")  # kinds that are stored transposed
# by how many float32 numbers a byte has: a dtype of as many bits
WIDE = {1: torch.float32, 2: torch.int64, 4: torch.complex128}
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
            zeros = self.zeros(rows, cols)
            _by_group(into, zeros).sub_(zeros)
        scales = self.scale(rows, cols)
        _by_group(into, scales).mul_(scales)
        if self.biases is not None:
            biases = self.biases(rows, cols)
            _by_group(into, biases).add_(biases)
        if self.last != 1:
            into.mul_(self.last)

    def cells(self, rows: Rows, cols: Cols) -> Cells:
        if self.codebook:
            return self._cells_of_codebook(rows, cols)
        start, stop = cols
        steps = torch.ones(len(rows), stop - start)
        scales = self.scale(rows, cols).abs()
        _by_group(steps, scales).mul_(scales)
        steps.mul_(self.last)
        return (steps,)

    def _cells_of_codebook(self, rows: Rows, cols: Cols) -> Cells:
        in_order = sorted(set(self.codebook))
        levels = torch.tensor(in_order, dtype=torch.float32)
        sums = levels[1:] + levels[:-1]
        middles = sums / 2
        reach = torch.tensor([self.reach])
        edges = torch.cat([-reach, middles, reach])
        stored = self.levels(rows, cols)
        cell = torch.bucketize(stored, middles)
        first = edges[cell]
        second = edges[cell + 1]
        before = self._margin(first, rows, cols)
        after = self._margin(second, rows, cols)
        self._scale(first, rows, cols)
        self._scale(second, rows, cols)
        lower = torch.minimum(first, second)  # scales may be below 0
        upper = torch.maximum(first, second)
        return lower - before, upper + after

    def _margin(self, edges: Tensor, rows: Rows, cols: Cols) -> Tensor:
        """The distance of the edge of a cell from where the stored scales put it, at most."""
        if self.loose is None:
            return torch.zeros(())
        margins = edges.abs()
        loose = self.loose(rows, cols)
        _by_group(margins, loose).mul_(loose)
        return margins


def _by_group(numbers: Tensor, shared: Tensor) -> Tensor:
    """View numbers so that what their groups share is broadcast over them."""
    if shared.ndim == 2:
        return numbers
    rows, groups, _ = shared.shape
    return numbers.view(rows, groups, -1)


def _take(raw: Raw, rows: Rows, cols: Cols) -> Tensor:
    """Read these rows of a matrix, limited to some columns; all rows if not consecutive."""
    first = int(rows.min())
    last = int(rows.max())
    span = slice(first, last + 1)
    part = raw[span, slice(*cols)]
    is_dense = last - first == len(rows) - 1
    is_rising = rows[1:] > rows[:-1]
    if is_dense and bool(is_rising.all()):
        return part
    chosen = torch.from_numpy(rows - first)
    return part.index_select(0, chosen)


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
    """The number of each byte in an 8-bit dtype."""
    codes = torch.arange(256, dtype=torch.uint8)
    numbers = codes.view(dtype).float()
    return tuple(numbers.tolist())


@cache
def code_table(values: tuple[float, ...], bits: int, high_first: bool) -> Tensor:
    """The values of the numbers in a byte, for every byte: float32 (256, numbers)."""
    end = 1 if 8 % bits else 8
    shifts = torch.arange(0, end, bits)
    if high_first:
        shifts = shifts.flip(0)
    codes = torch.arange(256)[:, None] >> shifts
    numbers = torch.tensor(values, dtype=torch.float32)
    return numbers[codes & _mask(bits)]


def _mask(bits: int) -> int:
    return (1 << bits) - 1


def numbers_of(
    raw: Tensor, bits: int, values: Iterable[float], count: int, high_first: bool = False
) -> Tensor:
    """Look up the first count numbers, each of this many bits, lowest first: float32 (rows, count).

    raw: bytes (rows, some). values: of each number.
    """
    table = code_table(tuple(values), bits, high_first)
    rows = len(raw)
    if 8 % bits:  # so many bytes hold eight numbers, of which each gets a byte
        stored = raw.shape[1]
        missing = -stored % bits
        padded = torch.nn.functional.pad(raw, (0, missing))
        octets = padded.view(rows, -1, bits).long()
        places = 8 * torch.arange(bits)
        words = (octets << places).sum(-1, keepdim=True)
        shifts = bits * torch.arange(8)
        raw = (words >> shifts) & _mask(bits)
    # the numbers of a byte are looked up as one
    wide = WIDE[table.shape[1]]
    codes = raw.reshape(-1).int()
    numbers_of_byte = table.view(wide).view(-1)
    numbers = numbers_of_byte.index_select(0, codes).view(torch.float32)
    return numbers.view(rows, -1)[:, :count]


def _streamed(raw: Raw, bits: int, values: Sequence[float], high_first: bool = False) -> Of:
    """Look up the values of numbers of that many bits. raw: bytes or words, (rows, some)."""
    of_word = 8 * raw.dtype.itemsize

    def levels(rows: Rows, cols: Cols) -> Tensor:
        start, stop = cols
        first = start * bits // of_word
        end = -(-stop * bits // of_word)
        words = _take(raw, rows, (first, end))
        stored = _compact(words).view(torch.uint8)
        return numbers_of(stored, bits, values, stop - start, high_first)

    return levels


def _shared(values: Tensor, group: int | Tensor) -> Of:
    """Look up the value that each group of columns shares. values: (rows, groups). group: that of
    each column, or the columns of a group; with several of these, only whole groups can be
    requested.
    """

    def of(rows: Rows, cols: Cols) -> Tensor:
        start, stop = cols
        own = values[torch.from_numpy(rows)]
        if isinstance(group, Tensor):
            groups = group[start:stop]
            return own.index_select(1, groups)
        if own.shape[1] == 1:
            return own
        whole = own[:, start // group : stop // group]
        return whole[..., None]

    return of


def _grouped(info: TensorInfo, pieces: Pieces, packing: Packing) -> Grid:
    """Decode (level - zero) * scale + bias, where a block of entries shares all but the levels.

    A block is a group of the columns of a row; with 8-bit numbers it may be a row, some rows or the
    whole matrix. The last blocks may be cut off. GPTQ and AWQ are stored transposed, and the words
    of AWQ hold rows.
    """
    kind = packing.kind
    bits, high, wide, added = packing.facts
    *stack, rows, cols = info.shape
    words = pieces["words"]
    shape = pieces.get("stated")
    if shape is not None and shape.whole().tolist() != [rows, cols]:
        raise _broken(info, "weight_shape is not that of the other layers")
    layout = pieces.get("layout")
    if layout is not None and int(layout.whole()) != 0:
        raise _broken(info, "its weight_format is not the one of rows")
    scales = _scales(pieces)
    zeros = None
    if "zeros" in pieces:
        zeros = pieces["zeros"].whole()
        if kind != "scaled":
            levels_of_zeros = _unpacked_zeros(zeros, kind, bits, rows)
            zeros = levels_of_zeros + added
    if kind in TURNED:
        scales = scales.T
    group = _groups(info, pieces, wide, scales)

    def shared(values: Tensor) -> Of:
        """Look up what blocks share."""
        matrices = math.prod(stack)
        blocks = -(-rows // high)
        grid = values.float().reshape(matrices, blocks, -1)
        of_rows = grid.repeat_interleave(high, 1)[:, :rows]
        return _shared(of_rows.flatten(0, 1), group)

    unit = 32
    if wide != cols and not isinstance(group, Tensor):
        unit = math.lcm(32, wide)
    values = _values(kind, bits, words.dtype, is_signed=zeros is None)
    book = []
    if kind == "e2m1" or info.dtype in FLOATS:
        book = [value for value in values if math.isfinite(value)]
    biases = pieces.get("biases")
    return Grid(
        cols,
        unit if cols % unit == 0 else cols,
        _levels(info, words, packing, values),
        shared(scales),
        zeros=None if zeros is None else shared(zeros),
        biases=None if biases is None else shared(biases.whole()),
        last=OF_INT8 if kind == "llm.int8" else 1.0,
        codebook=tuple(book),
    )


def _scales(pieces: Pieces) -> Tensor:
    """The scales of blocks, as they are stored."""
    scales = pieces["scales"].whole()
    if scales.dtype == torch.uint8:  # MXFP4: exponents of 2
        exponents = torch.arange(256) - 127
        powers = torch.ldexp(torch.ones(256), exponents)
        scales = powers[scales.int()]
    if "divisor" in pieces:  # NVFP4 of compressed-tensors
        divisor = pieces["divisor"].whole().float()
        return scales.float() / divisor.flatten()
    if "factor" in pieces:  # of ModelOpt
        factor = pieces["factor"].whole().float()
        return scales.float() * factor.flatten()
    return scales


def _unpacked_zeros(stored: Tensor, kind: str, bits: int, rows: int) -> Tensor:
    """Unpack the zeros of groups: (rows, groups)."""
    words = _compact(stored if kind in TURNED else stored.T)
    levels = range(1 << bits)
    zeros = numbers_of(words.view(torch.uint8), bits, levels, rows)
    if kind == "awq":
        nibbles = zeros.view(len(zeros), -1, 8)
        in_order = nibbles[..., list(AWQ_NIBBLES)]
        zeros = in_order.flatten(-2)
    return zeros.T


def _groups(info: TensorInfo, pieces: Pieces, wide: int, scales: Tensor) -> int | Tensor:
    """The group of each column; the columns of a group if equal ones fill the rows: it is faster.
    scales: (..., groups).
    """
    cols = info.shape[-1]
    in_order = torch.arange(cols) // wide
    groups = in_order
    if "order" in pieces:
        groups = pieces["order"].whole().long()
        count = scales.shape[-1]
        if groups.min() < 0 or groups.max() >= count:
            raise _broken(info, "g_idx names groups that do not exist")
    is_even = cols % wide == 0
    if is_even and torch.equal(groups, in_order):
        return wide
    return groups


def _values(kind: str, bits: int, dtype: torch.dtype, *, is_signed: bool) -> Sequence[float]:
    """The value of each level."""
    if kind == "e2m1":
        return E2M1
    if kind in ("scaled", "llm.int8"):
        return numbers_of_bytes(dtype)
    count = 1 << bits
    # without zeros the middle of `pack-quantized` is 0
    first = -count // 2 if kind == "pack-quantized" and is_signed else 0
    return range(first, first + count)


def _levels(info: TensorInfo, words: StoredTensor, packing: Packing, values: Sequence[float]) -> Of:
    """Read the levels of a part."""
    bits = packing.facts[0]
    if packing.kind not in TURNED:
        return _streamed(_bytes(words, info), bits, values)

    def turned(stored: Tensor) -> Tensor:
        whole = stored.view(torch.int32)
        return whole.T

    raw = words.seen(turned)

    def interleaved(rows: Rows, cols: Cols) -> Tensor:
        """Unpack the numbers of AWQ, eight rows in a word."""
        nibbles = torch.tensor(AWQ_NIBBLES, dtype=torch.int32)
        shifts = 4 * nibbles[rows % 8]
        words = _take(raw, rows // 8, cols)
        levels = words >> shifts[:, None]
        return levels.bitwise_and_(15)

    return interleaved if packing.kind == "awq" else _streamed(raw, bits, values)


def _bitsandbytes_4bit(info: TensorInfo, pieces: Pieces, packing: Packing) -> Grid:
    """Decode bitsandbytes' NF4 and FP4: level * absmax. Blocks run through all entries. Their
    scales may be quantised to 8 bits of a codebook, again in blocks.
    """
    (block,) = packing.facts
    rows, cols = info.shape
    numbers = pieces["state"].whole()
    content = bytes(numbers.tolist())
    state = quant_state(content)
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
        inner = codes[scales.int()]
        scales = inner * wide + offset
        # levels are chosen before scales are rounded, to the nearest code
        widest = codes.sort().values.diff().max()
        loose = wide.abs() * widest / 2

    def by_block(values: Tensor) -> Of:
        if cols % block == 0:
            return _shared(values.view(rows, -1), block)

        def of(rows: Rows, columns: Cols) -> Tensor:
            along = np.arange(*columns)
            entries = np.add.outer(rows * cols, along)
            return values[torch.from_numpy(entries // block)]

        return of

    levels = NF4 if info.dtype == "NF4" else FP4
    raw = _bytes(pieces["words"], info)
    return Grid(
        cols,
        2 if cols % block else block,
        _streamed(raw, 4, levels, high_first=True),
        by_block(scales.float()),
        codebook=levels,
        reach=max(levels),  # the scale of a block is its largest number
        loose=None if loose is None else by_block(loose),
    )


def _bytes(stored: StoredTensor, info: TensorInfo) -> Raw:
    """View stored data as bytes, (rows, bytes of a row)."""
    rows = math.prod(info.shape[:-1])

    def bytes_of(words: Tensor) -> Tensor:
        return words.view(torch.uint8).reshape(rows, -1)

    return stored.seen(bytes_of)


def _broken(info: TensorInfo, what: str) -> UndecodableError:
    return UndecodableError(f"{info.name} ({info.dtype}): {what}", "quantise the model again")


Order = Callable[[Rows], Rows]


class GgmlBlocks:
    """A matrix in blocks of a ggml type, each within one row."""

    costly = True

    def __init__(self, raw: StoredTensor, kind: str, order: Order = lambda rows: rows) -> None:
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
        into.copy_(self._decoded(rows, cols, ()))

    def cells(self, rows: Rows, cols: Cols) -> Cells:
        ones = even_grids().get(self._kind)
        if ones is None:
            return ()
        zeros = [(start, stop, 0) for start, stop, _ in ones]
        at_1 = self._decoded(rows, cols, ones)
        at_0 = self._decoded(rows, cols, zeros)
        return ((at_1 - at_0).abs(),)

    def _decoded(self, rows: Rows, cols: Cols, filled: Sequence[Filled]) -> Tensor:
        """Decode blocks in which some bytes hold another number."""
        first, last = [col // self.unit * self._size for col in cols]
        stored = self._order(rows)
        part = _take(self._raw, stored, (first, last)).numpy()
        copy = bool(filled) or None
        stored_blocks = np.array(part, order="C", copy=copy)
        blocks = stored_blocks.reshape(-1, self._size)
        for start, stop, byte in filled:
            blocks[:, start:stop] = byte
        # what `gguf.quants.dequantize` calls for 16 rows at a time, and copies
        with np.errstate(all="ignore"):  # scales may be NaN, which is for the audit to find
            numbers = self._type.dequantize_blocks(blocks)
        return torch.from_numpy(numbers).view(len(rows), -1)


def _gguf(info: TensorInfo, pieces: Pieces, packing: Packing) -> Decoder:
    """Make the decoder of a GGUF tensor, or of floats whose rows are stored in another order.

    Facts of its packing: the number of heads whose rows are stored in pairs, or 0, and what was
    added to its numbers. Rotary embeddings turn row i of a head with row i + d/2 in transformers,
    and with its neighbour in llama.cpp: `w.reshape(heads, 2, d/2, cols).swapaxes(1, 2)` is stored.
    """
    raw = pieces["words"]
    heads, added = packing.facts
    half = raw.shape[0] // (heads or 1) // 2

    def order(rows: Rows) -> Rows:
        if not heads:
            return rows
        pair, place = np.divmod(rows, half)
        head, second = np.divmod(pair, 2)
        neighbours = head * half + place
        return neighbours * 2 + second

    def levels(rows: Rows, cols: Cols) -> Tensor:
        return _take(raw, order(rows), cols)

    if info.dtype not in FLOATS:
        return GgmlBlocks(raw, info.dtype, order)
    rows, cols = raw.shape
    ones = torch.ones(rows, 1)
    zeros = _shared(ones * added, cols) if added else None
    return Grid(cols, 1, levels, _shared(ones, cols), zeros)


def packed_tensor(info: TensorInfo, read: Callable[[TensorInfo], StoredTensor]) -> DecodedTensor:
    """Open the tensor of an entry with a packing. read: opens what lies in files."""
    packing = info.packing
    assert packing is not None
    raw = packing.raw
    infos = (raw, *packing.beside)
    named = zip(packing.roles, infos, strict=False)
    pieces = {role: read(piece) for role, piece in named}
    upright = info
    if info.strides is not None:  # decoded are the transposes of its matrices
        *stack, cols, rows = info.shape
        upright = replace(info, shape=(*stack, rows, cols))
    makers = {GGUF: _gguf, "bitsandbytes-4bit": _bitsandbytes_4bit}
    make = makers.get(packing.kind, _grouped)
    decoder: Decoder = make(upright, pieces, packing)
    is_float = packing.kind == GGUF and info.dtype in FLOATS  # which have no single grid
    dtype = torch.float32
    if is_float:
        dtype = pieces["words"].dtype
    view = torch.empty(upright.shape, dtype=dtype, device="meta")
    if info.strides is not None:
        view = view.mT
    tensor = DecodedTensor if is_float else PackedTensor
    stored = raw.end - raw.start
    return tensor(info.dtype, decoder, view, stored)
