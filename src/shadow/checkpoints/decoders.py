"""The bytes of quantised matrices -> numbers: of safetensors files (level - zero) * scale + bias in
float32, with the arithmetic of the library that writes the format; of GGUF files by the `gguf`
package.

Levels are whole numbers, or of a codebook; all the rest is shared by a group of columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
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
# numbers of so many bits that are looked up together: codes have 8, 10 or 12 bits
TOGETHER = {2: 4, 3: 4, 4: 2, 5: 2, 6: 2, 8: 1}

Pieces = Mapping[str, StoredTensor]
Size = tuple[int, int]  # rows and columns of the matrix that is decoded
Raw = StoredTensor | Tensor
Of = Callable[[Rows, Cols], Tensor]
"""What entries of a part share, float32: (rows, columns), or (rows, groups, 1) where equal groups
fill the rows.
"""
Levels = Callable[[Rows, Cols], Tensor]
"""The level of each entry of a part, (rows, cols)."""


class Codebook:
    """The levels of a format, and the bounds between which each level is the nearest."""

    def __init__(self, levels: Iterable[float], reach: float = math.inf) -> None:
        """reach: the largest number that is rounded to a level; larger ones are clipped."""
        ascending = torch.tensor(sorted(set(levels)), dtype=torch.float32)
        self._middles = (ascending[1:] + ascending[:-1]) / 2
        end = torch.tensor([reach])
        self._edges = torch.cat([-end, self._middles, end])

    def cells(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bounds of the cell of each level."""
        place = torch.bucketize(levels, self._middles)
        return self._edges[place], self._edges[place + 1]


@dataclass(frozen=True)
class Grid:
    """Levels, and how they become numbers."""

    width: int
    unit: int
    levels: Levels
    scales: Sequence[Of]  # multiplied with one after another
    zeros: Of | None = None
    biases: Of | None = None
    codebook: Codebook | None = None  # None where levels are whole numbers
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
        for scales in self.scales:
            _each(into, scales(rows, cols), torch.Tensor.mul_)
        if self.biases is not None:
            _each(into, self.biases(rows, cols), torch.Tensor.add_)

    def cells(self, rows: Rows, cols: Cols) -> Cells:
        if self.codebook is None:
            made = torch.ones(len(rows), cols[1] - cols[0])
            for scales in self.scales:
                _each(made, scales(rows, cols).abs(), torch.Tensor.mul_)
            return (made,)
        ends = self.codebook.cells(self.levels(rows, cols))
        wider = [end.abs() if self.loose else torch.zeros(()) for end in ends]
        for end, more in zip(ends, wider, strict=True):
            if self.loose is not None:
                _each(more, self.loose(rows, cols), torch.Tensor.mul_)
            self._scale(end, rows, cols)
        # a scale may be below 0
        return torch.minimum(*ends) - wider[0], torch.maximum(*ends) + wider[1]


def _each(made: Tensor, shared: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Combine every entry with a value that it shares with others."""
    change(made if shared.ndim == 2 else made.view(*shared.shape[:2], -1), shared)


def _run_of(rows: Rows) -> slice | None:
    """Return consecutive rows as a slice; None if they are not consecutive."""
    first, stop = int(rows[0]), int(rows[-1]) + 1
    is_run = stop - first == len(rows) and bool((rows[1:] > rows[:-1]).all())
    return slice(first, stop) if is_run else None


def _take(raw: Raw, rows: Rows, cols: Cols) -> Tensor:
    """Read these rows of a matrix, limited to some columns; all rows if not consecutive."""
    if (run := _run_of(rows)) is not None:
        return raw[run, slice(*cols)]
    first = int(rows.min())
    part = raw[first : int(rows.max()) + 1, slice(*cols)]
    return part.index_select(0, torch.from_numpy(rows - first))


def _compact(words: Tensor) -> Tensor:
    """Copy words without gaps. The rows of a transposed matrix are selected first: torch transposes
    contiguous data two to four times as fast.
    """
    if words.ndim == 2 and words.stride(1) != 1:
        words = words.T.contiguous().T
    # a clone, as one word a row may pass for contiguous with any stride, and is then no bytes
    return words.clone(memory_format=torch.contiguous_format)


@cache
def code_table(levels: tuple[float, ...], bits: int, high_first: bool = False) -> Tensor:
    """Return the levels of the numbers in a code, for every code: float32 (codes, numbers)."""
    count = TOGETHER[bits]
    shifts = torch.arange(0, count * bits, bits)
    codes = torch.arange(1 << (count * bits))[:, None]
    codes = codes >> (shifts.flip(0) if high_first else shifts)
    return torch.tensor(levels, dtype=torch.float32)[codes & ((1 << bits) - 1)]


def numbers_of(raw: Tensor, bits: int, table: Tensor, count: int) -> Tensor:
    """Look up the first count numbers, each of so many bits, lowest first: float32 (rows, count).

    raw: bytes (rows, some). table: of codes.
    """
    together = bits * table.shape[1]
    size = math.lcm(8, together) // 8
    raw = torch.nn.functional.pad(raw, (0, -raw.shape[1] % size))
    if size > 1:  # codes lie across two bytes
        parts = raw.view(len(raw), -1, size).int()
        places = (divmod(at, 8) for at in range(0, 8 * size, together))
        codes = [(parts[..., at] | parts[..., at + 1] << 8) >> shift for at, shift in places]
        raw = torch.stack(codes, -1).bitwise_and_((1 << together) - 1)
    # the numbers of a code are looked up as one
    wide = {1: torch.float32, 2: torch.int64, 4: torch.complex128}[table.shape[1]]
    found = table.view(wide).view(-1).index_select(0, raw.reshape(-1).int())
    return found.view(torch.float32).view(len(raw), -1)[:, :count]


def _streamed(raw: Raw, bits: int, values: Sequence[float], *, high_first: bool = False) -> Levels:
    """Return the values of numbers of that many bits. raw: bytes or words, (rows, some)."""
    of_word = 8 * raw.dtype.itemsize
    table = code_table(tuple(values), bits, high_first)

    def levels(rows: Rows, cols: Cols) -> Tensor:
        words = _take(raw, rows, (cols[0] * bits // of_word, -(-cols[1] * bits // of_word)))
        return numbers_of(_compact(words).view(torch.uint8), bits, table, cols[1] - cols[0])

    return levels


def _shared(values: Tensor, group: int | Tensor) -> Of:
    """Return a function that looks up the value that each group of columns shares. values: (rows,
    groups). With several groups, only whole groups of columns can be requested.
    """
    values = values.contiguous()

    def of(rows: Rows, cols: Cols) -> Tensor:
        run = _run_of(rows)
        mine = values[torch.from_numpy(rows) if run is None else run]
        start, stop = cols
        if isinstance(group, Tensor):
            return mine.index_select(1, group[start:stop])
        return mine if mine.shape[1] == 1 else mine[:, start // group : stop // group, None]

    return of


def _unit(cols: int, group: int | Tensor, least: int) -> int:
    """Return how many columns are decoded together; groups fill the rows or have an order."""
    unit = least if isinstance(group, Tensor) or group == cols else math.lcm(least, group)
    return unit if cols % unit == 0 else cols


def _affine(info: TensorInfo, pieces: Pieces, packing: Packing, size: Size) -> Decoder:
    """Decode affine formats. GPTQ and AWQ are stored transposed, and the words of AWQ hold rows.
    Without zeros, the middle level is 0 (`pack-quantized`).
    """
    kind, (bits, group, added), (rows, cols) = packing.kind, packing.facts, size
    is_turned = kind in ("gptq", "awq")
    if "stated" in pieces and pieces["stated"].whole().tolist() != [rows, cols]:
        raise _broken(info, "weight_shape is not that of the other layers")
    groups: int | Tensor = group
    if "order" in pieces:
        groups = pieces["order"].whole().long()
        count = pieces["scales"].shape[0 if is_turned else -1]
        if not bool(((groups >= 0) & (groups < count)).all()):
            raise _broken(info, "g_idx names groups that are not there")
        if torch.equal(groups, torch.arange(cols) // group):
            groups = group  # in order, which is faster

    def shared(role: str) -> Of:
        values = pieces[role].whole().float()
        return _shared(values.T if is_turned else values.flatten(0, -2), groups)

    zeros = None
    if "zeros" in pieces:
        stored = pieces["zeros"].whole()
        raw = _compact(stored if is_turned else stored.T).view(torch.uint8)
        numbers = numbers_of(raw, bits, code_table(tuple(range(1 << bits)), bits), rows)
        if kind == "awq":
            numbers = numbers.view(len(numbers), -1, 8)[..., list(AWQ_NIBBLES)].flatten(-2)
        zeros = _shared((numbers + added).T, groups)
    words = pieces["words"].seen(
        lambda one: one.view(torch.int32).T if is_turned else one.view(torch.int32).flatten(0, -2)
    )

    def interleaved(rows: Rows, cols: Cols) -> Tensor:
        """Unpack the numbers of AWQ, eight rows in a word."""
        first = int(rows.min()) // 8
        part = _compact(words[first : int(rows.max()) // 8 + 1, slice(*cols)])
        shifts = 4 * torch.tensor(AWQ_NIBBLES, dtype=torch.int32)[rows % 8]
        return (part[rows // 8 - first] >> shifts[:, None]).bitwise_and_(15)

    first = -(1 << (bits - 1)) if kind == "pack-quantized" and zeros is None else 0
    return Grid(
        cols,
        _unit(cols, groups, 32),
        interleaved if kind == "awq" else _streamed(words, bits, range(first, first + (1 << bits))),
        [shared("scales")],
        zeros,
        shared("biases") if "biases" in pieces else None,
    )


def _scaled(info: TensorInfo, pieces: Pieces, packing: Packing, size: Size) -> Decoder:
    """Decode 8-bit floats or integers: raw * scale, or (raw - zero point) * scale. One scale
    belongs to a block, a row, a group of a row, or the whole matrix. The last blocks of a matrix
    may be cut off, and a stack of matrices has a stack of scales. bitsandbytes multiplies by 1 /
    127 last.
    """
    if "layout" in pieces and int(pieces["layout"].whole()) != 0:
        raise _broken(info, "its weight_format is not the one of rows")
    (high, wide), (rows, cols) = packing.facts, size
    raw, zeros = pieces["words"], pieces.get("zeros")
    down = -(-rows // high)  # blocks do not go on from a matrix of a stack to the next
    group = torch.arange(cols) // wide if cols % wide else wide

    def of(piece: StoredTensor) -> Of:
        by_col = _shared(piece.whole().float().reshape(-1, -(-cols // wide)), group)
        return lambda which, columns: by_col(which // rows * down + which % rows // high, columns)

    numbers = torch.arange(256, dtype=torch.uint8).view(raw.dtype).float()
    last = torch.tensor([[OF_INT8]])
    return Grid(
        cols,
        _unit(cols, group, 1),
        # torch takes eight times as long for a cast of 8-bit floats
        _streamed(_bytes(raw, cols), 8, tuple(numbers.tolist())),
        [of(pieces["scales"]), *([lambda *_: last] if packing.kind == "llm.int8" else [])],
        zeros=of(zeros) if zeros else None,
        codebook=Codebook(numbers[numbers.isfinite()].tolist())
        if raw.dtype.is_floating_point
        else None,
    )


def _e2m1(_: TensorInfo, pieces: Pieces, packing: Packing, size: Size) -> Decoder:
    """Decode level * scale in blocks of columns. The scale of MXFP4 is 2^(scale - 127). That of
    NVFP4 is an 8-bit float, divided by one number of the matrix (compressed-tensors) or multiplied
    by it (ModelOpt).
    """
    (group,), cols = packing.facts, size[1]
    stored = pieces["scales"].whole()
    if stored.dtype == torch.uint8:
        powers = torch.ldexp(torch.ones(256), torch.arange(256) - 127)
        scales = powers[stored.int()].flatten(0, -2)
    elif "divisor" in pieces:
        scales = stored.float() / pieces["divisor"].whole().float().flatten()
    else:
        scales = stored.float() * pieces["factor"].whole().float().flatten()
    levels = _streamed(_bytes(pieces["words"], cols // 2), 4, E2M1)
    return Grid(cols, group, levels, [_shared(scales, group)], codebook=Codebook(E2M1))


def _bitsandbytes_4bit(info: TensorInfo, pieces: Pieces, packing: Packing, size: Size) -> Decoder:
    """Decode bitsandbytes' NF4 and FP4: level * absmax. Blocks run through all entries. Their
    scales may be quantised to 8 bits of a codebook, again in blocks.
    """
    (block,), (rows, cols) = packing.facts, size
    state = quant_state(bytes(pieces["state"].whole().tolist()))
    if state is None or state[:3] != (rows, cols, block):
        raise _broken(info, "its quant_state is not that of the other layers")
    scales, loose = pieces["scales"].whole().flatten(), None
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
        _streamed(_bytes(pieces["words"], cols // 2), 4, known, high_first=True),
        [by_block(scales.float())],
        codebook=Codebook(known, max(known)),  # the scale of a block is its largest number
        loose=None if loose is None else by_block(loose),
    )


def _bytes(stored: StoredTensor, width: int) -> Raw:
    """Return stored data as bytes, (rows, width)."""
    return stored.seen(lambda words: words.view(torch.uint8).reshape(-1, width))


def _broken(info: TensorInfo, what: str) -> UndecodableError:
    return UndecodableError(f"{info.name} ({info.dtype}): {what}", "quantise the model again")


Order = Callable[[Rows], Rows]

# Even grids of GGUF: for each type the bytes of a block that hold the quants, and what they are
# where every quant is 1; 0 where every one is. All other bytes are scales and offsets.
QUANTS: Mapping[str, tuple[tuple[int, int, int], ...]] = {  # (start, stop, all 1)
    "Q4_0": ((2, 18, 0x11),), "Q4_1": ((4, 20, 0x11),), "Q8_0": ((2, 34, 0x01),),
    "Q5_0": ((2, 6, 0x00), (6, 22, 0x11)), "Q5_1": ((4, 8, 0x00), (8, 24, 0x11)),
    "Q2_K": ((16, 80, 0x55),), "Q3_K": ((0, 32, 0x00), (32, 96, 0x55)), "Q4_K": ((16, 144, 0x11),),
    "Q5_K": ((16, 48, 0x00), (48, 176, 0x11)), "Q6_K": ((0, 128, 0x11), (128, 192, 0x00)),
    "TQ1_0": ((0, 52, 0x80),), "TQ2_0": ((0, 64, 0x55),),  # TQ1_0: to base 3, a fraction of 256
}  # fmt: skip
# the bytes of a block that hold numbers of E2M1, two in each, and what they are where both are 1
CODEBOOKS = {"MXFP4": (1, 17, 0x22), "NVFP4": (4, 36, 0x22)}


class GgmlBlocks:
    """A matrix in blocks of a ggml type, each within one row."""

    costly = True

    def __init__(self, raw: StoredTensor, kind: str, order: Order = lambda rows: rows) -> None:
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
            scales = self._decoded(blocks, len(rows), CODEBOOKS[self._kind])
            ends = Codebook(E2M1).cells(self._decoded(blocks, len(rows)) / scales)
            return tuple(end * scales for end in ends)
        if self._kind not in QUANTS:
            return ()
        quants = QUANTS[self._kind]
        zero = self._decoded(blocks, len(rows), *((start, stop, 0) for start, stop, _ in quants))
        return ((self._decoded(blocks, len(rows), *quants) - zero).abs(),)

    def _blocks(self, rows: Rows, cols: Cols) -> NDArray[np.uint8]:
        start, stop = (col // self.unit * self._size for col in cols)
        part = _take(self._raw, self._order(rows), (start, stop))
        return np.ascontiguousarray(part.numpy()).reshape(-1, self._size)

    def _decoded(
        self, blocks: NDArray[np.uint8], rows: int, *filled: tuple[int, int, int]
    ) -> Tensor:
        """Return the numbers of blocks in which some bytes (start, stop) hold another block."""
        blocks = blocks.copy() if filled else blocks
        for start, stop, byte in filled:
            blocks[:, start:stop] = byte
        # what `gguf.quants.dequantize` calls for 16 rows at a time, and copies
        with np.errstate(all="ignore"):  # scales may be NaN, which is for the audit to find
            return torch.from_numpy(self._type.dequantize_blocks(blocks)).view(rows, -1)


@dataclass(frozen=True)
class ReorderedFloats:
    """Floats of a GGUF file whose rows are stored in another order, or with a number added."""

    raw: StoredTensor
    order: Order
    added: int
    unit, costly = 1, False

    @property
    def width(self) -> int:
        return self.raw.shape[1]

    def values(self, rows: Rows, cols: Cols, into: Tensor) -> None:
        into.copy_(_take(self.raw, self.order(rows), cols))
        if self.added:
            into.sub_(self.added)

    def cells(self, rows: Rows, cols: Cols) -> Cells:
        """Return no cells: floats have no single format."""
        return ()


def _gguf(info: TensorInfo, pieces: Pieces, packing: Packing, _: Size) -> Decoder:
    """Make the decoder of a GGUF tensor.

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

    return (
        ReorderedFloats(raw, order, added)
        if info.dtype in FLOATS
        else GgmlBlocks(raw, info.dtype, order)
    )


KINDS: Mapping[str, Callable[[TensorInfo, Pieces, Packing, Size], Decoder]] = {
    **dict.fromkeys(("gptq", "awq", "pack-quantized", "mlx"), _affine),
    "scaled": _scaled,
    "llm.int8": _scaled,
    "e2m1": _e2m1,
    "bitsandbytes-4bit": _bitsandbytes_4bit,
    GGUF: _gguf,
}


def packed_tensor(info: TensorInfo, read: Callable[[TensorInfo], StoredTensor]) -> DecodedTensor:
    """Open the tensor of an entry with a packing. read: opens what lies in files."""
    packing = info.packing
    assert packing is not None
    infos = zip(packing.roles, (packing.raw, *packing.beside), strict=False)
    pieces = {role: read(one) for role, one in infos}
    rows, cols = (1, 1, *info.shape)[-2:]
    size = (rows, cols) if info.strides is None else (cols, rows)
    decoder, dtype = KINDS[packing.kind](info, pieces, packing, size), torch.float32
    kind: type[DecodedTensor] = PackedTensor
    if isinstance(decoder, ReorderedFloats):
        kind, dtype = DecodedTensor, decoder.raw.dtype
    view = torch.empty(info.parameters, dtype=dtype, device="meta")
    if info.strides is None:
        view = view.view(info.shape)
    else:  # decoded are the transposes of its matrices
        view = view.as_strided(info.shape, info.strides)
    return kind(info.dtype, decoder, view, packing.raw.end - packing.raw.start)
