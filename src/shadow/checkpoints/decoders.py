"""The bytes of quantised matrices of safetensors files -> numbers: (level - zero) * scale + bias in
float32, with the arithmetic of the library that writes the format.

Levels are whole numbers, or of a codebook; all else is shared by a group of columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from shadow.checkpoints.formats import quant_state
from shadow.checkpoints.packed_tensors import (
    Cells,
    Codebook,
    Cols,
    Decoder,
    PackedTensor,
    Read,
    Rows,
    run_of,
    take,
)
from shadow.checkpoints.safetensors_files import Packing, TensorInfo
from shadow.checkpoints.stored_tensors import StoredTensor
from shadow.dtypes import E2M1, FP4, NF4
from shadow.errors import UndecodableError

# where AWQ keeps the eight outputs of a word, in nibbles (awq/utils/packing_utils.py)
AWQ_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)
OF_INT8 = 7.874015718698502e-3  # 1 / 127, as bitsandbytes multiplies
# numbers of so many bits that are looked up together: codes have 8, 10 or 12 bits
TOGETHER = {2: 4, 3: 4, 4: 2, 5: 2, 6: 2, 8: 1}

Pieces = Mapping[str, StoredTensor]
Raw = StoredTensor | Tensor
Of = Callable[[Rows, Cols], Tensor]
"""What entries of a part share, float32: (rows, columns), or (rows, groups, 1) where equal groups
fill the rows.
"""
Levels = Callable[[Rows, Cols, Tensor], object]
"""Puts the level of each entry of a part into a tensor, float32 (rows, cols) without gaps."""


class Grid:
    """Levels, and what makes numbers of them."""

    costly = False

    def __init__(
        self,
        unit: int,
        levels: Levels,
        *scales: Of,
        zeros: Of | None = None,
        biases: Of | None = None,
        codebook: Codebook | None = None,
        loose: Of | None = None,
    ) -> None:
        """unit: columns that are decoded together. scales: multiplied with one after another.
        codebook: None where levels are whole numbers. loose: how far the scales by which a
        codebook's levels were chosen lie from those that are stored.
        """
        self.unit = unit
        self._levels, self._zeros, self._biases = levels, zeros, biases
        self._scales, self._codebook, self._loose = scales, codebook, loose

    def values(self, rows: Rows, cols: Cols, into: Tensor) -> None:
        self._levels(rows, cols, into)
        self._scale(into, rows, cols)

    def _scale(self, into: Tensor, rows: Rows, cols: Cols) -> None:
        """Make levels into numbers, in place."""
        if self._zeros is not None:
            _each(into, self._zeros(rows, cols), torch.Tensor.sub_)
        for scales in self._scales:
            _each(into, scales(rows, cols), torch.Tensor.mul_)
        if self._biases is not None:
            _each(into, self._biases(rows, cols), torch.Tensor.add_)

    def cells(self, rows: Rows, cols: Cols) -> Cells:
        made = torch.ones(len(rows), cols[1] - cols[0])
        if self._codebook is None:
            for scales in self._scales:
                _each(made, scales(rows, cols).abs(), torch.Tensor.mul_)
            return (made,)
        self._levels(rows, cols, made)
        ends = self._codebook.cells(made)
        wider = [end.abs() if self._loose else torch.zeros(()) for end in ends]
        for end, more in zip(ends, wider, strict=True):
            if self._loose is not None:
                _each(more, self._loose(rows, cols), torch.Tensor.mul_)
            self._scale(end, rows, cols)
        # a scale may be below 0
        return torch.minimum(*ends) - wider[0], torch.maximum(*ends) + wider[1]


def _each(made: Tensor, shared: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Change every entry by what it shares with others."""
    change(made if shared.ndim == 2 else made.view(*shared.shape[:2], -1), shared)


def _as_bytes(words: Tensor) -> Tensor:
    """The bytes of words along the last dimension."""
    # one word a row may pass for contiguous with any stride, and is then no bytes
    if words.shape[-1] == 1:
        return words.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    return _compact(words).view(torch.uint8)


def _compact(words: Tensor) -> Tensor:
    """Words without gaps. Of a transposed matrix the rows are first cut out: torch transposes what
    has no gaps two to four times as fast.
    """
    is_turned = words.ndim == 2 and words.stride(1) != 1
    return words.T.contiguous().T.contiguous() if is_turned else words.contiguous()


@cache
def code_table(levels: tuple[float, ...], bits: int, high_first: bool = False) -> Tensor:
    """The levels of the numbers in a code, for every code: float32 (codes, numbers)."""
    count = TOGETHER[bits]
    shifts = torch.arange(0, count * bits, bits)
    codes = torch.arange(1 << (count * bits))[:, None]
    codes = codes >> (shifts.flip(0) if high_first else shifts)
    return torch.tensor(levels, dtype=torch.float32)[codes & ((1 << bits) - 1)]


def _codes(raw: Tensor, bits: int) -> Tensor:
    """The codes of so many bits in bytes (rows, some), each of one byte or across two."""
    if bits == 8:
        return raw
    size = math.lcm(8, bits) // 8
    parts = raw.view(len(raw), -1, size).int()
    codes = torch.empty(*parts.shape[:2], 8 * size // bits, dtype=torch.int32)
    for number in range(codes.shape[-1]):
        at, shift = divmod(number * bits, 8)
        code = (parts[..., at + 1] << 8).bitwise_or_(parts[..., at])
        codes[..., number] = code.bitwise_right_shift_(shift).bitwise_and_((1 << bits) - 1)
    return codes


def _look_up(codes: Tensor, table: Tensor, into: Tensor) -> None:
    """Put rows of a table of float32 one after another: each is looked up as one number."""
    wide = {1: torch.float32, 2: torch.int64, 4: torch.complex128}[table.shape[1]]
    numbers, found = table.view(wide).view(-1), into.view(wide).view(-1)
    torch.index_select(numbers, 0, codes.reshape(-1).int(), out=found)


def numbers_of(raw: Tensor, bits: int, table: Tensor, into: Tensor) -> None:
    """Put the first numbers of streams of so many bits, lowest first, into a tensor (rows, some).

    raw: bytes (rows, some). table: of codes.
    """
    width = into.shape[1]
    if bits == 8:
        into.copy_(raw[:, :width])
        if table[0]:
            into.add_(table[0])
        return
    together = bits * table.shape[1]
    if lacking := -raw.shape[1] % (math.lcm(8, together) // 8):
        raw = torch.nn.functional.pad(raw, (0, lacking))
    count = 8 * raw.shape[1] // bits
    found = into if count == width else torch.empty(len(raw), count)
    _look_up(_codes(raw, together), table, found)
    if count != width:
        into.copy_(found[:, :width])


def _streamed(raw: Raw, bits: int, values: Sequence[float], *, high_first: bool = False) -> Levels:
    """The values of numbers of so many bits; raw: bytes or words, (rows, some)."""
    of_word = 8 * raw.dtype.itemsize
    table = code_table(tuple(values), bits, high_first)

    def levels(rows: Rows, cols: Cols, into: Tensor) -> None:
        words = take(raw, rows, (cols[0] * bits // of_word, -(-cols[1] * bits // of_word)))
        numbers_of(_as_bytes(words), bits, table, into)

    return levels


def _interleaved(words: Raw) -> Levels:
    """Numbers of 4 bits of AWQ, eight rows in a word; words: (rows / 8, cols)."""
    shifts = 4 * torch.tensor(AWQ_NIBBLES, dtype=torch.int32)[:, None]

    def levels(rows: Rows, cols: Cols, into: Tensor) -> None:
        first, stop = int(rows.min()) // 8, int(rows.max()) // 8 + 1
        part = _compact(words[first:stop, slice(*cols)])
        every = (part[:, None] >> shifts).bitwise_and_(15).view(-1, part.shape[1])
        into.copy_(take(every, rows - 8 * first, (0, part.shape[1])))

    return levels


def _floats(raw: Raw) -> Levels:
    """Numbers of 8 bits as they are."""
    if not raw.dtype.is_floating_point:
        return lambda rows, cols, into: into.copy_(take(raw, rows, cols))
    # torch takes four times as long for a cast of 8-bit floats; two are looked up together
    one, two = (
        torch.arange(1 << (8 * count)).to(whole).view(raw.dtype).float().view(-1, count)
        for count, whole in ((1, torch.uint8), (2, torch.uint16))
    )

    def levels(rows: Rows, cols: Cols, into: Tensor) -> None:
        part = take(raw, rows, cols)
        even = part.shape[1] % 2 == part.storage_offset() % 2 == part.stride(0) % 2 == 0
        _look_up(part.view(torch.uint16 if even else torch.uint8), two if even else one, into)

    return levels


def _shared(values: Tensor, group: int | Tensor) -> Of:
    """What so many columns of a row share, or those of each group do; values: (rows, groups). Of
    more than one, columns are asked for by whole groups.
    """
    values = values.contiguous()

    def of(rows: Rows, cols: Cols) -> Tensor:
        run = run_of(rows)
        mine = values[torch.from_numpy(rows) if run is None else run]
        start, stop = cols
        if isinstance(group, Tensor):
            return mine.index_select(1, group[start:stop])
        return mine if mine.shape[1] == 1 else mine[:, start // group : stop // group, None]

    return of


def _unit(cols: int, group: int | Tensor, least: int) -> int:
    """Columns that are decoded together, of groups that fill the rows or have an order."""
    unit = least if isinstance(group, Tensor) or group == cols else math.lcm(least, group)
    return unit if cols % unit == 0 else cols


def _affine(info: TensorInfo, pieces: Pieces) -> Decoder:
    """GPTQ and AWQ are stored transposed; of AWQ words hold rows. Without zeros the middle of
    `pack-quantized` is 0.
    """
    kind, (bits, group, added) = _packing(info).kind, _packing(info).facts
    rows, cols = _upright(info)
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
        raw = _as_bytes(stored if is_turned else stored.T)
        numbers = torch.empty(len(raw), rows)
        numbers_of(raw, bits, code_table(tuple(range(1 << bits)), bits), numbers)
        if kind == "awq":
            numbers = numbers.view(len(numbers), -1, 8)[..., list(AWQ_NIBBLES)].flatten(-2)
        zeros = _shared((numbers + added).T, groups)
    words = pieces["words"].seen(
        lambda one: one.view(torch.int32).T if is_turned else one.view(torch.int32).flatten(0, -2)
    )
    first = -(1 << (bits - 1)) if kind == "pack-quantized" and zeros is None else 0
    streamed = _streamed(words, bits, range(first, first + (1 << bits)))
    return Grid(
        _unit(cols, groups, 32),
        _interleaved(words) if kind == "awq" else streamed,
        shared("scales"),
        zeros=zeros,
        biases=shared("biases") if "biases" in pieces else None,
    )


def _scaled(info: TensorInfo, pieces: Pieces) -> Decoder:
    """raw * scale, or (raw - zero point) * scale, of 8-bit floats or integers. A scale is that of a
    block, a row, a group of a row, or of all. The last blocks of a matrix may be cut, and a stack
    of matrices has a stack of scales. bitsandbytes multiplies with 1 / 127 at last.
    """
    if "layout" in pieces and int(pieces["layout"].whole()) != 0:
        raise _broken(info, "its weight_format is not the one of rows")
    high, wide = _packing(info).facts
    rows, cols = _upright(info)
    raw, zeros = pieces["words"], pieces.get("zeros")
    down = -(-rows // high)  # blocks do not go on from a matrix of a stack to the next
    group = torch.arange(cols) // wide if cols % wide else wide

    def of(piece: StoredTensor) -> Of:
        by_col = _shared(piece.whole().float().reshape(-1, -(-cols // wide)), group)
        return lambda which, columns: by_col(which // rows * down + which % rows // high, columns)

    last = torch.tensor([[OF_INT8]])
    return Grid(
        _unit(cols, group, 1),
        _floats(raw.seen(lambda stored: stored.reshape(-1, cols))),
        of(pieces["scales"]),
        *([lambda rows, cols: last] if _packing(info).kind == "llm.int8" else []),
        zeros=of(zeros) if zeros else None,
        codebook=_of_floats(raw.dtype) if raw.dtype.is_floating_point else None,
    )


@cache
def _of_floats(dtype: torch.dtype) -> Codebook:
    """The finite numbers of an 8-bit format."""
    every = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    return Codebook(every[every.isfinite()].tolist())


def _e2m1(info: TensorInfo, pieces: Pieces) -> Decoder:
    """level * scale in blocks of columns. MXFP4: 2^(scale - 127). NVFP4: 8-bit floats, which are
    divided by one number of the matrix (compressed-tensors), or multiplied with one (ModelOpt).
    """
    (group,) = _packing(info).facts
    stored = pieces["scales"].whole()
    if stored.dtype == torch.uint8:
        powers = torch.ldexp(torch.ones(256), torch.arange(256) - 127)
        scales = powers[stored.int()].flatten(0, -2)
    elif "divisor" in pieces:
        scales = stored.float() / pieces["divisor"].whole().float().flatten()
    else:
        scales = stored.float() * pieces["factor"].whole().float().flatten()
    levels = _streamed(_bytes(pieces["words"], _upright(info)[1] // 2), 4, E2M1)
    return Grid(group, levels, _shared(scales, group), codebook=Codebook(E2M1))


def _bitsandbytes_4bit(info: TensorInfo, pieces: Pieces) -> Decoder:
    """level * absmax: bitsandbytes' NF4 and FP4, whose blocks run through all entries, and whose
    scales may be quantised themselves, to 8 bits of a codebook in blocks.
    """
    (block,) = _packing(info).facts
    rows, cols = _upright(info)
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
        2 if cols % block else block,
        _streamed(_bytes(pieces["words"], cols // 2), 4, known, high_first=True),
        by_block(scales.float()),
        codebook=Codebook(known, max(known)),  # the scale of a block is its largest number
        loose=None if loose is None else by_block(loose),
    )


def _bytes(stored: StoredTensor, width: int) -> Raw:
    """What is stored as bytes, (rows, width)."""
    return stored.seen(lambda words: words.view(torch.uint8).reshape(-1, width))


def _upright(info: TensorInfo) -> tuple[int, int]:
    """Rows and columns of the matrix that is decoded."""
    *_, rows, cols = info.shape
    return (rows, cols) if info.strides is None else (cols, rows)


def _packing(info: TensorInfo) -> Packing:
    assert info.packing is not None
    return info.packing


def _broken(info: TensorInfo, what: str) -> UndecodableError:
    return UndecodableError(f"{info.name} ({info.dtype}): {what}", "quantise the model again")


KINDS: Mapping[str, Callable[[TensorInfo, Pieces], Decoder]] = {
    **dict.fromkeys(("gptq", "awq", "pack-quantized", "mlx"), _affine),
    "scaled": _scaled,
    "llm.int8": _scaled,
    "e2m1": _e2m1,
    "bitsandbytes-4bit": _bitsandbytes_4bit,
}


def packed_tensor(info: TensorInfo, read: Read) -> PackedTensor:
    """The quantised tensor of an entry with a packing; read opens what lies in files."""
    packing = _packing(info)
    infos = zip(packing.roles, (packing.raw, *packing.beside), strict=False)
    pieces = {role: read(one) for role, one in infos}
    view = torch.empty(info.parameters, device="meta")
    if info.strides is None:
        width, view = info.shape[-1], view.view(info.shape)
    else:  # decoded are the transposes of its matrices
        width, view = info.shape[-2], view.as_strided(info.shape, info.strides)
    stored = packing.raw.end - packing.raw.start
    return PackedTensor(info.dtype, KINDS[packing.kind](info, pieces), view, width, stored)
